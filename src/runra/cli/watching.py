"""`runra events`: what happens, as it happens."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from runra.cli.output import say, show_line


def _shown(value: object) -> str:
    """A field on one line. What a sandbox says may hold anything, the codes that move a terminal's cursor among it."""
    text = str(value)
    return text if text.isprintable() else json.dumps(value, ensure_ascii=True)


def events(
    sandbox_id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Only those of this sandbox.")] = None,
    sandbox: Annotated[str | None, typer.Option("--sandbox", metavar="ID", help="The same, as an option.")] = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            help="Only these, such as exec.completed or sandbox.*; repeatable. exec.streamed has to be named.",
        ),
    ] = None,
    after: Annotated[str | None, typer.Option("--after", help="Begin after the event with this id.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print each as a JSON object on a line.")] = False,
) -> None:
    """Print events as they come, of all your sandboxes or of one, until Ctrl-C."""
    from runra import Runra

    chosen = sandbox or sandbox_id
    with Runra() as client:
        source = client.sandboxes.get(chosen) if chosen else client
        with source.events(after=after, types=types, on_gap=lambda gap: say(str(gap))) as stream:
            for event in stream:
                wire = event.model_dump(mode="json", by_alias=True)
                if as_json:
                    show_line(wire)
                else:
                    data = " ".join(f"{name}={_shown(value)}" for name, value in event.data.items())
                    print(f"{event.timestamp}  {event.sandbox_id}  {event.type:<20}  {data}".rstrip(), flush=True)
