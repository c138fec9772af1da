"""What an agent changed: the files of a folder before and after, and the difference as text."""

from __future__ import annotations

import difflib
import posixpath
import secrets
from typing import TYPE_CHECKING, Final

from runra.errors import RunraError
from runra.runtime.types import ChangedFiles

if TYPE_CHECKING:
    from runra.contract import ExecutionResult
    from runra.runtime.sandbox import Sandbox

#: Longest listing, in bytes; a folder with more files than that is not compared.
_LISTING: Final = 7_000_000
_NAMED: Final = 1000
#: A diff is made of text files up to this size, of so many at most, and is cut at the last.
_TEXT_BYTES: Final = 256 << 10
_TEXT_FILES: Final = 100
_DIFF_CHARACTERS: Final = 1 << 20
#: Largest folder that is copied to be compared with, in KiB.
_COPY_KIB: Final = 256 << 10

# Identity, size and time of change of each file; busybox's find has no -printf, but its stat has -c.
_LIST: Final = r"""
cd -- "$1" 2>/dev/null || exit 0
if find . -maxdepth 0 -printf '' 2>/dev/null; then
  find . -xdev -name .git -prune -o \( -type f -o -type l \) -printf '%i %s %C@ %p\0'
else
  find . -xdev -name .git -prune -o \( -type f -o -type l \) -exec stat -c '%i %s %Z %n' {} + | tr '\n' '\0'
fi 2>/dev/null | head -c "$2"
"""
_COPY: Final = r"""
cd -- "$1" 2>/dev/null || exit 0
kib=$(du -skx . 2>/dev/null | cut -f1)
[ "${kib:-0}" -le "$3" ] || exit 9
umask 077 && mkdir -p "$2" && cp -a . "$2"
"""


class Changes:
    """Files below `folder` of a sandbox, compared with how they are when this begins."""

    def __init__(self, sandbox: Sandbox, folder: str) -> None:
        self._sandbox = sandbox
        self._folder = folder
        self._before: dict[str, str] = {}
        self._copy = ""
        self.warnings: list[str] = []

    async def begin(self, *, keep: bool) -> None:
        """Look at the files; `keep` a copy inside the sandbox as well, so that `diff` has something to compare."""
        self._before = await self._list(self._folder)
        if not keep:
            return
        copy = f"/var/tmp/.runra-before-{secrets.token_hex(8)}"  # noqa: S108 - in the sandbox, unguessable, 0700
        done = await self._shell(_COPY, self._folder, copy, str(_COPY_KIB))
        if done.exit_code == 0:
            self._copy = copy
        else:
            await self._drop(copy)
            self.warnings.append(
                f"no diff: {self._folder} could not be copied, or is larger than {_COPY_KIB >> 10} MiB"
            )

    async def end(self) -> ChangedFiles:
        """What is different now."""
        after = await self._list(self._folder)
        created = sorted(after.keys() - self._before.keys())
        deleted = sorted(self._before.keys() - after.keys())
        modified = sorted(name for name in after.keys() & self._before.keys() if after[name] != self._before[name])
        return ChangedFiles(
            created=created[:_NAMED],
            modified=modified[:_NAMED],
            deleted=deleted[:_NAMED],
            truncated=any(len(names) > _NAMED for names in (created, modified, deleted)),
        )

    async def diff(self, changed: ChangedFiles) -> str | None:
        """The changes of text files as a unified diff; None when no copy was kept."""
        if not self._copy:
            return None
        pieces: list[str] = []
        kinds = ((changed.created, False, True), (changed.modified, True, True), (changed.deleted, True, False))
        named = [(name, old, new) for names, old, new in kinds for name in names]
        for name, old, new in sorted(named)[:_TEXT_FILES]:
            pieces += await self._one(name, old, new)
        if len(named) > _TEXT_FILES:
            self.warnings.append(f"the diff shows {_TEXT_FILES} of {len(named)} changed files")
        text = "".join(pieces)
        if len(text) > _DIFF_CHARACTERS:
            self.warnings.append("the diff was cut at 1 MiB")
        return text[:_DIFF_CHARACTERS]

    async def close(self) -> None:
        """Remove the copy."""
        if self._copy:
            copy, self._copy = self._copy, ""
            await self._drop(copy)

    async def _one(self, name: str, old: bool, new: bool) -> list[str]:
        before = await self._text(self._copy, name) if old else ""
        after = await self._text(self._folder, name) if new else ""
        if before is None or after is None:
            return [f"Binary or large file {name} differs\n"]
        shown = (f"a/{name}" if old else "/dev/null", f"b/{name}" if new else "/dev/null")
        lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), *shown)
        return [line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines]

    async def _text(self, folder: str, name: str) -> str | None:
        """A file's text; None for what is no text, or too large. A link is shown by where it leads, never followed."""
        script = 'if [ -L "$1" ]; then printf "link to "; readlink -- "$1"; else head -c "$2" -- "$1"; fi'
        done = await self._shell(script, posixpath.join(folder, name), str(_TEXT_BYTES + 1))
        text = done.stdout
        large = len(text.encode(errors="replace")) > _TEXT_BYTES
        return None if large or done.exit_code or "\0" in text or "�" in text else text

    async def _list(self, folder: str) -> dict[str, str]:
        done = await self._shell(_LIST, folder, str(_LISTING))
        if done.truncated or len(done.stdout) >= _LISTING:
            raise RunraError(
                "INVALID_REQUEST", f"{folder} has too many files to be compared", details={"reason": "too_many"}
            )
        found: dict[str, str] = {}
        for entry in done.stdout.split("\0"):
            inode, _, rest = entry.partition(" ")
            size, _, rest = rest.partition(" ")
            time, _, name = rest.partition(" ")
            if name:
                found[name.removeprefix("./")] = f"{inode} {size} {time}"
        return found

    async def _drop(self, copy: str) -> None:
        await self._shell('rm -rf -- "$1"', copy)

    async def _shell(self, script: str, *arguments: str) -> ExecutionResult:
        return await self._sandbox.exec(["sh", "-c", script, "sh", *arguments], timeout_ms=60_000)
