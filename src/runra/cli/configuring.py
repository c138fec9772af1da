"""`runra config`: the runtime's options in force, where each comes from, and whether they can work."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from runra.cli.output import show_json, show_table

File = Annotated[str | None, typer.Option("--file", metavar="PATH", help="In place of the project's file.")]


def show(
    file: File = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show every option that is set and the source it comes from. Keys and tokens are masked."""
    from runra.runtime.config import masked, resolve

    found = resolve(config_file=file)
    values = masked(found.values)
    if as_json:
        show_json({"values": values, "sources": found.sources})
        return
    show_table(
        ["OPTION", "VALUE", "SOURCE"], [[path, _told(values, path), found.sources[path]] for path in found.sources]
    )


def check(
    file: File = None,
    connect: Annotated[
        bool, typer.Option("--connect", help="Also ask the sandbox provider for its sandboxes.")
    ] = False,
) -> None:
    """Check the options: that they are well formed, and that what they name is there. Exits with 1 when not."""
    import asyncio

    from runra.runtime import Runra

    async def look() -> str:
        runra = Runra(config_file=file)
        try:
            sandboxes = f", {len(await runra.list_sandboxes())} sandboxes" if connect else ""
        finally:
            await runra.dispose()
        chosen = runra.config.options
        parts = [f"sandboxes of {runra.provider.id!r}{sandboxes}"]
        parts += [f"agent {chosen.agent.provider!r}"] if chosen.agent is not None else []
        parts += [f"model of {chosen.llm.provider!r}"] if chosen.llm is not None else []
        exporters = chosen.observability.exporters if chosen.observability is not None else []
        parts += [f"exporter {one.provider!r}" for one in exporters]
        return ", ".join(parts)

    print(f"ok: {asyncio.run(look())}")


def _told(values: Any, path: str) -> str:
    for part in path.split("."):
        values = values[part] if isinstance(values, dict) and part in values else "<set>"
    return str(values)
