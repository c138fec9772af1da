"""The contract's six tools on a sandbox of any provider: bash, read, write, edit, glob, grep. All is done inside."""

from __future__ import annotations

import asyncio
import posixpath
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import ValidationError

from runra.errors import RunraError
from runra.runtime.agents.hands import inputs, scripts
from runra.runtime.agents.hands.patterns import braces, matcher, root
from runra.runtime.agents.hands.tool import MAX_OUTPUT, Tool, ToolFailed, ToolOutput, cut
from runra.runtime.agents.options import TOOLS, ToolName
from runra.runtime.sandboxes import shell
from runra.runtime.tasks import to_end
from runra.sdk.types import refused

if TYPE_CHECKING:
    from runra.contract import ExecutionResult
    from runra.runtime.sandbox import Sandbox

Input = TypeVar("Input", bound=inputs.Input)

#: Longest line that is shown, in characters; of a match, too.
_LINE: Final = 2000
_MATCH_LINE: Final = 400
#: Most of a file that one read takes out of the sandbox, in bytes, and largest file that is edited.
_READ_BYTES: Final = 256 << 10
_EDIT_BYTES: Final = 8 << 20
#: Longest listing a glob looks through, in bytes, and how many of its files are named.
_LISTING: Final = 4_000_000
_FOUND: Final = 200
#: How long the shell of a file tool may take, in ms.
_SHELL_MS: Final = 60_000
_CLEAN_S: Final = 10.0


class SandboxTools:
    """The six tools on one sandbox. `workdir`: where relative paths and `bash` begin, the sandbox's own when unset.
    `env`: for commands. `limit`: longest output of one call, in characters.

    Any of them may run at once with others; changes of files wait for each other. `close` when done.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        *,
        workdir: str | None = None,
        env: Mapping[str, str] | None = None,
        limit: int = MAX_OUTPUT,
    ) -> None:
        self._sandbox = sandbox
        self._env = dict(env or {})
        self._limit = limit
        self._changing = asyncio.Lock()
        self._marked = False
        # Where `bash` ended up last, kept in the sandbox: what a command does to its folder lasts, as in a terminal.
        self._mark = f"/tmp/.runra-cwd-{secrets.token_hex(8)}"  # noqa: S108 - in the sandbox, unguessable
        self.workdir = workdir or sandbox.workdir

    def offered(self, allowed: Iterable[ToolName] = TOOLS) -> list[Tool]:
        """The allowed ones, as a model is offered them."""
        made: dict[ToolName, Tool] = {
            "bash": _tool("bash", inputs.Bash, self._bash),
            "read": _tool("read", inputs.Read, self._read),
            "write": _tool("write", inputs.Write, self._write),
            "edit": _tool("edit", inputs.Edit, self._edit),
            "glob": _tool("glob", inputs.Glob, self._glob),
            "grep": _tool("grep", inputs.Grep, self._grep),
        }
        chosen = set(allowed)
        return [tool for name, tool in made.items() if name in chosen]

    async def close(self) -> None:
        """Take away what was kept in the sandbox."""
        if not self._marked:
            return
        try:
            await to_end(self._removed(), _CLEAN_S)
        except (RunraError, TimeoutError):
            return  # the sandbox is gone or stuck, and the mark with it

    async def _removed(self) -> None:
        await self._sandbox.exec(["rm", "-f", "--", self._mark], timeout_ms=int(_CLEAN_S * 1000))

    # --- the tools -----------------------------------------------------------------------------------------------

    async def _bash(self, given: inputs.Bash) -> ToolOutput:
        self._marked = True
        command = shell.argv(scripts.BASH, given.command, self._mark)
        try:
            done = await self._sandbox.exec(
                command, cwd=self.workdir, env=self._env or None, timeout_ms=given.timeout_ms
            )
        except RunraError as error:
            if error.code != "EXECUTION_TIMEOUT":
                raise
            so_far = str(error.details.get("stdout") or "")
            raise ToolFailed(
                f"The command ran longer than {given.timeout_ms} ms and was killed. Give it more timeoutMs, or start "
                "what runs on by itself in the background: nohup COMMAND >/tmp/log 2>&1 &\n"
                + (f"Its output until then:\n{cut(so_far, self._limit)}" if so_far else "It printed nothing.")
            ) from None
        text = cut(done.stdout.rstrip("\n"), self._limit)
        if done.truncated:
            text += "\n[the command printed more than is kept; what is missing came after this]"
        if done.oom:
            text += "\n[killed: the sandbox's memory is full]"
        elif done.signal is not None:
            text += f"\n[killed by {done.signal}]"
        elif done.exit_code:
            text += f"\n[exit code {done.exit_code}]"
        return ToolOutput(text.lstrip("\n") or "(no output)", done.exit_code != 0, done.exit_code)

    async def _read(self, given: inputs.Read) -> ToolOutput:
        path = await self._path(given.path)
        last = given.offset + given.limit - 1
        done = await self._shell("read", path, scripts.READ, str(given.offset), str(last), str(_READ_BYTES))
        told, _, content = done.stdout.partition("\n")
        count, _, size = told.partition(" ")
        total = int(count) if count.isdigit() else 0
        lines = content.split("\n")
        if lines and not lines[-1]:
            lines.pop()
        if not lines:
            if size == "0":
                return ToolOutput(f"{path} is empty.")
            raise ToolFailed(f"{path} has {total} lines; offset {given.offset} is beyond its end.")
        shown: list[str] = []
        room = self._limit
        for number, line in enumerate(lines, given.offset):
            text = f"{number:>6}\t{line if len(line) <= _LINE else line[:_LINE] + ' [… line cut]'}"
            room -= len(text) + 1
            if room < 0 and shown:
                break
            shown.append(text)
        end = given.offset + len(shown) - 1
        if end < total:
            shown.append(f"[lines {given.offset} to {end} of {total}; go on with offset {end + 1}]")
        return ToolOutput("\n".join(shown))

    async def _write(self, given: inputs.Write) -> ToolOutput:
        path = await self._path(given.path)
        async with self._changing:
            await self._sandbox.files.write(path, given.content)
        return ToolOutput(f"Wrote {len(given.content.encode())} bytes to {path}.")

    async def _edit(self, given: inputs.Edit) -> ToolOutput:
        if given.old_string == given.new_string:
            raise ToolFailed("oldString and newString are the same: nothing would change.")
        path = await self._path(given.path)
        async with self._changing:
            await self._shell("edit", path, scripts.SMALL, str(_EDIT_BYTES))
            before = await self._sandbox.files.read(path)
            count = before.count(given.old_string)
            if count == 0:
                hint = " (it is there in other letters)" if given.old_string.lower() in before.lower() else ""
                raise ToolFailed(
                    f"oldString is not in {path}{hint}. It must match exactly, white space included and without line "
                    "numbers: read the file again."
                )
            if count > 1 and not given.replace_all:
                raise ToolFailed(
                    f"oldString is {count} times in {path}: give more of the text around the one you mean, or set "
                    "replaceAll."
                )
            await self._sandbox.files.write(path, before.replace(given.old_string, given.new_string))
        line = before[: before.index(given.old_string)].count("\n") + 1
        places = "one place" if count == 1 else f"{count} places"
        return ToolOutput(f"Replaced {places} in {path}, from line {line} on.")

    async def _glob(self, given: inputs.Glob) -> ToolOutput:
        folder, pattern = root(given.pattern)
        where = await self._path(posixpath.join(given.path or ".", folder))
        done = await self._shell("glob", where, scripts.FIND, str(_LISTING))
        found = await asyncio.to_thread(_matching, pattern, done.stdout)
        shown = [posixpath.join(where, name) for name in found[:_FOUND]]
        if len(found) > _FOUND:
            shown.append(f"[{len(found) - _FOUND} more; use a narrower pattern]")
        if done.truncated or len(done.stdout.encode(errors="replace")) >= _LISTING:
            shown.append(f"[{where} has too many files to look at all of them; name a folder further down]")
        return ToolOutput(cut("\n".join(shown), self._limit) or f"No file below {where} matches {given.pattern}.")

    async def _grep(self, given: inputs.Grep) -> ToolOutput:
        where = await self._path(given.path or ".")
        names: list[str] = []
        for name in braces(given.include) if given.include else ():
            names += ["-o", "-name", name]
        chosen = ["(", *names[1:], ")"] if names else []
        around = str(0 if given.files_only else given.context)
        mode = "files" if given.files_only else "lines"
        flags = "-i" if given.ignore_case else ""
        done = await self._shell("grep", where, scripts.GREP, given.pattern, around, mode, flags, *chosen)
        # busybox's grep does not know binary files: their lines are left out here.
        lines = [line.removeprefix("./") for line in done.stdout.split("\n") if line and "\0" not in line]
        shown = [line if len(line) <= _MATCH_LINE else line[:_MATCH_LINE] + " [… cut]" for line in lines[: given.limit]]
        if len(lines) > given.limit:
            shown.append(f"[{len(lines) - given.limit} more lines; use a narrower pattern, or a higher limit]")
        if not shown:
            return ToolOutput(f"No match for {given.pattern} in {where}.")
        return ToolOutput(cut("\n".join(shown), self._limit))

    # --- what they share -----------------------------------------------------------------------------------------

    async def _path(self, path: str) -> str:
        """The path from the root; a relative one begins where `bash` is."""
        if path.startswith("/"):
            return posixpath.normpath(path)
        return posixpath.normpath(posixpath.join(await self._cwd(), path))

    async def _cwd(self) -> str:
        if not self._marked:
            return self.workdir
        done = await self._sandbox.exec(["cat", "--", self._mark], timeout_ms=_SHELL_MS)
        here = done.stdout.removesuffix("\n")
        return here if here.startswith("/") and done.exit_code == 0 else self.workdir

    async def _shell(self, operation: str, path: str, script: str, *arguments: str) -> ExecutionResult:
        done = await self._sandbox.exec(shell.argv(script, path, *arguments), timeout_ms=_SHELL_MS)
        match done.exit_code:
            case scripts.NO_FILE:
                raise ToolFailed(f"{path} is no plain file.")
            case scripts.BINARY:
                raise ToolFailed(f"{path} is binary; look at it with bash (file, xxd, strings).")
            case scripts.BAD_PATTERN:
                raise ToolFailed(f"The pattern is no extended regular expression: {done.stdout.strip()[:300]}")
            case scripts.TOO_LARGE:
                raise ToolFailed(f"{path} is larger than {_EDIT_BYTES >> 20} MiB: change it with bash (sed, awk).")
        return shell.check(done, operation, path)


def _matching(pattern: str, listing: str) -> list[str]:
    matches = matcher(pattern)
    names = (name.removeprefix("./") for name in listing.split("\0")[:-1])
    return sorted(name for name in names if matches(name))


def _tool(name: ToolName, kind: type[Input], work: Callable[[Input], Awaitable[ToolOutput]]) -> Tool:
    async def call(given: Any) -> ToolOutput:
        if isinstance(given, dict) and "_raw" in given:
            raise ToolFailed("The input is no valid JSON; send it again, whole.")
        try:
            asked = kind.model_validate(given)
        except ValidationError as error:
            raise ToolFailed(f"The input does not fit: {refused(error).message}") from None
        try:
            return await work(asked)
        except RunraError as error:
            if error.details.get("reason") is None and error.code != "INVALID_REQUEST":
                raise  # the sandbox's own trouble; only what the model can mend is told as a tool's result
            raise ToolFailed(error.message) from None

    return Tool(name, inputs.description(kind), inputs.schema(kind), call)
