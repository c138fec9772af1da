"""`runra agent run`: what it may be given, and its exit codes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from runra.cli.output import complain, is_terminal
from runra.cli.words import milliseconds
from runra.errors import RunraError

#: Errors that say the command was wrong, not the run.
_BAD_USE: Final = frozenset(("INVALID_CONFIG", "INVALID_REQUEST", "SANDBOX_NOT_FOUND"))

Permission = Literal["auto-approve", "prompt", "plan"]


def run(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="What it shall do; - reads stdin.")],
    agent: Annotated[
        str | None, typer.Option("--agent", help="Which: `runra agents`. [default: the configuration's]")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Which model. [default: the configuration's]")] = None,
    llm: Annotated[
        str | None, typer.Option("--llm", metavar="PROVIDER", help="Who runs it: anthropic, openai, vllm, …")
    ] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", metavar="URL", help="Where the model is.")] = None,
    image: Annotated[str | None, typer.Option("--image", help="Of a new sandbox. [default: agents/AGENT]")] = None,
    sandbox: Annotated[
        str | None, typer.Option("--sandbox", metavar="ID", help="In this sandbox, which stays. [default: a new one]")
    ] = None,
    session: Annotated[
        str | None, typer.Option("--session", metavar="ID", help="Go on with a conversation that --sandbox has.")
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the new sandbox there.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Print what was changed in text files.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Copy what it made and changed into this new folder.")
    ] = None,
    max_cost: Annotated[float | None, typer.Option("--max-cost", metavar="USD", help="Most it may spend.")] = None,
    max_turns: Annotated[int | None, typer.Option("--max-turns", min=1, help="Most turns. [default: 50]")] = None,
    timeout: Annotated[
        str | None, typer.Option("--timeout", metavar="TIME", help="90s, 30m, 2h. [default: none]")
    ] = None,
    placement: Annotated[
        Literal["sandbox", "host"] | None,
        typer.Option("--placement", help="host: the agent here, its hands in the sandbox."),
    ] = None,
    permission: Annotated[
        Permission | None,
        typer.Option("--permission", help="prompt: each use of a tool is asked for; plan: nothing is changed."),
    ] = None,
    workdir: Annotated[
        str | None, typer.Option("--workdir", "-w", help="Where it works. [default: /workspace]")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record", metavar="FILE", help="Keep the run, for `runra agent replay`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Each event as a JSON line, the result as the last.")] = False,
) -> None:
    """Let a coding agent work on a prompt, and watch it.

    What is not said here comes from the runtime's configuration (`runra config show`), the model's key always does.
    Ctrl-C stops the agent, with a result; a second one ends everything. Exits with 0 when the agent succeeded, 1 when
    it failed, 130 after Ctrl-C.
    """
    # Here rather than above: they take half a second, which every other command would pay.
    import asyncio

    from runra.cli.agent.working import Asked, main

    if prompt == "-":
        prompt = sys.stdin.read()
    if not prompt.strip():
        raise typer.BadParameter("is empty", param_hint="PROMPT")
    if sandbox is not None and image is not None:
        raise typer.BadParameter("--sandbox is there already; leave --image out", param_hint="--image")
    if session is not None and sandbox is None:
        raise typer.BadParameter("a conversation lives in its sandbox: give --sandbox as well", param_hint="--session")
    if permission == "prompt" and not is_terminal(sys.stdin):
        raise typer.BadParameter("nobody is at a terminal to be asked", param_hint="--permission")
    config: dict[str, Any] = {"maxCost": max_cost, "maxTurns": max_turns, "placement": placement}
    config |= {"permissionMode": permission, "workdir": workdir}
    given = {key: value for key, value in config.items() if value is not None}
    limit = milliseconds(timeout, "--timeout") if timeout else None
    try:
        options = _options(agent, given, llm, model, base_url)
        name = options["agent"]["provider"]
        asked = Asked(prompt, name, options, image, sandbox, session, keep, diff, out, limit, record, as_json)
        code = asyncio.run(main(asked))
    except RunraError as error:
        if error.code not in _BAD_USE:
            raise
        complain(error)
        code = 2
    raise typer.Exit(code)


def _options(
    agent: str | None, config: dict[str, Any], llm: str | None, model: str | None, base_url: str | None
) -> dict[str, Any]:
    """The runtime's options that the command line gives, to go over those of environment and files."""
    from runra.runtime.config import resolve

    known = resolve().options
    name = agent or (known.agent.provider if known.agent else None)
    if name is None:
        raise typer.BadParameter("name one; `runra agents` lists them", param_hint="--agent")
    provider = llm or (known.llm.provider if known.llm else None)
    if base_url is not None and provider is None:
        raise typer.BadParameter("say whose it is: --llm custom, vllm, …", param_hint="--base-url")
    options: dict[str, Any] = {"agent": {"provider": name, "config": config}}
    if provider is not None and (llm or model or base_url):
        wanted = {key: value for key, value in (("model", model), ("baseUrl", base_url)) if value is not None}
        options["llm"] = {"provider": provider, "config": wanted}
    elif model is not None:
        config["model"] = model
    return options
