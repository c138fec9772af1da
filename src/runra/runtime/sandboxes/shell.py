"""Files of a sandbox by way of its shell, for providers without a better one. Everything happens inside the walls.

The scripts need a POSIX shell and what GNU and busybox share. Paths go in as arguments, never as text of the script;
names come back between NUL bytes, so no name can be taken for another.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from runra.contract import ExecutionResult, FileEntry
from runra.contract.files import FileType
from runra.errors import RunraError

#: Exit codes of the scripts below, and the reasons they stand for (as the server's own file errors have them).
REASONS: Final = {
    40: "not_found",
    41: "is_a_directory",
    42: "not_a_directory",
    43: "exists",
    44: "not_empty",
    45: "permission_denied",
}

READ: Final = '[ -e "$1" ] || exit 40; [ -d "$1" ] && exit 41; [ -r "$1" ] || exit 45; exec cat -- "$1"'
#: The same for a provider that only answers text.
READ_BASE64: Final = '[ -e "$1" ] || exit 40; [ -d "$1" ] && exit 41; [ -r "$1" ] || exit 45; exec base64 -- "$1"'
#: Written beside its target and moved there whole; a link is followed, and an existing file keeps its mode. The second
#: argument is the size: half an input is no file. Prints whether there was one before.
WRITE: Final = """
p=$1; [ -L "$p" ] && p=$(readlink -f -- "$p")
[ -d "$p" ] && exit 41
case $p in */*) d=${p%/*};; *) d=.;; esac
mkdir -p -- "${d:-/}" 2>/dev/null || exit 42
t=$(mktemp -- "${d:-/}/.runra.XXXXXX" 2>/dev/null) || exit 45
m=$(stat -c %a -- "$p" 2>/dev/null) && had=1 || { m=644; had=0; }
cat > "$t" && [ "$(stat -c %s -- "$t")" = "$2" ] && chmod "$m" "$t" && mv -f -- "$t" "$p" || { rm -f -- "$t"; exit 1; }
echo $had
"""
LIST: Final = r"""
[ -e "$1" ] || exit 40; [ -d "$1" ] || exit 42; cd -- "$1" || exit 45
for f in * .[!.]* ..?*; do
  [ -e "$f" ] || [ -L "$f" ] || continue
  d=0; [ -d "$f" ] && d=1
  printf '%s\0' "$f"; stat -c "%F|%s|%Y|%a|%U|%G|$d" -- "$f"; printf '\0'
done
"""
EXISTS: Final = '[ -e "$1" ] || [ -L "$1" ] || exit 40'
DELETE: Final = """
[ -e "$1" ] || [ -L "$1" ] || exit 40
if [ "$2" = 1 ]; then exec rm -rf -- "$1"; fi
if [ -d "$1" ] && [ ! -L "$1" ]; then rmdir -- "$1" 2>/dev/null || exit 44; else exec rm -f -- "$1"; fi
"""
MKDIR: Final = """
if [ "$2" = 1 ]; then mkdir -p -- "$1" 2>/dev/null || exit 42; exit 0; fi
[ -e "$1" ] && exit 43; case $1 in */*) [ -d "${1%/*}/" ] || exit 40;; esac
mkdir -- "$1" || exit 45
"""

BASH_ELSE_SH: Final = 'if command -v bash >/dev/null 2>&1; then exec bash -c "$1"; fi; exec sh -c "$1"'
#: Marks a command and all it starts, where the back end itself cannot kill that: an environment variable.
TAG: Final = "RUNRA_EXEC"
#: Kills whatever carries the mark `NAME=value`, again until nothing does: it may be forking meanwhile.
KILL: Final = r"""
n=0; while [ $n -lt 20 ]; do hit=
  for p in /proc/[0-9]*; do
    if tr '\0' '\n' < "$p/environ" 2>/dev/null | grep -qx "$1"; then kill -9 "${p#/proc/}" 2>/dev/null && hit=1; fi
  done
  [ -z "$hit" ] && exit 0; n=$((n+1))
done; exit 1
"""


def argv(script: str, *arguments: str) -> list[str]:
    """A script with its arguments, as a command."""
    return ["/bin/sh", "-c", script, "sh", *arguments]


def path_argument(path: str) -> str:
    """A path that no tool takes for an option. Raises INVALID_REQUEST for what is no path."""
    if not isinstance(path, str) or not path or "\0" in path:
        raise RunraError("INVALID_REQUEST", f"path: must be a path, not {path!r}", details={"field": "path"})
    return path if path.startswith("/") else f"./{path}"


def check(result: ExecutionResult, operation: str, path: str) -> ExecutionResult:
    """The result of a script that did its work. Raises INVALID_REQUEST with its reason, or INTERNAL_ERROR."""
    if result.exit_code == 0:
        return result
    reason = REASONS.get(result.exit_code or 0)
    if reason is not None:
        raise RunraError(
            "INVALID_REQUEST",
            f"{operation} {path[:200]!r}: {reason.replace('_', ' ')}",
            details={"reason": reason, "path": path},
        )
    said = result.stderr.strip()[-300:]
    full = "no space" in said.lower()
    raise RunraError(
        "RESOURCE_EXHAUSTED" if full else "INTERNAL_ERROR",
        f"{operation} {path[:200]!r}: the sandbox's shell ended with {result.exit_code}"
        + (f": {said}" if said else ""),
        details={"path": path, "exitCode": result.exit_code, **({"reason": "disk_full"} if full else {})},
        retryable=False,
    )


_TYPES: Final[tuple[tuple[str, FileType], ...]] = (
    ("directory", "directory"),
    ("symbolic link", "symlink"),
    ("fifo", "fifo"),
    ("socket", "socket"),
    ("character special", "char"),
    ("block special", "block"),
)


def entries(folder: str, output: str) -> list[FileEntry]:
    """What LIST printed. A sandbox wrote it: what does not parse is left out, and nothing else happens."""
    found = []
    parts = output.split("\0")
    for name, told in zip(parts[::2], parts[1::2], strict=False):
        fields = told.strip().split("|")
        if len(fields) != 7 or not name or not fields[1].isdigit() or not fields[2].lstrip("-").isdigit():
            continue
        kind, size, modified, mode, owner, group, is_folder = fields
        try:
            at = datetime.fromtimestamp(int(modified), UTC)
        except (OverflowError, ValueError, OSError):
            continue
        found.append(
            FileEntry(
                name=name,
                path=f"{folder.rstrip('/')}/{name}",
                is_directory=is_folder == "1",
                size_bytes=int(size),
                modified_at=at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                mode=mode.zfill(4),
                owner=owner,
                group=group,
                type=next((type for told_kind, type in _TYPES if kind.startswith(told_kind)), "file"),
            )
        )
    return sorted(found, key=lambda entry: entry.name)
