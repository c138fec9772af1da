"""Make the sync form of the SDK (`sdk/_sync`) from the async one (`sdk/_async`), token by token.

    python scripts/generate_sync.py          write what changed
    python scripts/generate_sync.py --check  exit with 1 when anything is stale

`async` and `await` go away, names are replaced by their sync counterparts, everything else stays as it is; ruff then
sorts imports and lays out lines as the repository has it. Needs the development dependencies.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SDK = ROOT / "src" / "runra" / "sdk"
SOURCE, TARGET = SDK / "_async", SDK / "_sync"

NAMES = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "AbstractAsyncContextManager": "AbstractContextManager",
    "StopAsyncIteration": "StopIteration",
    "aclosing": "closing",
    "anext": "next",
    "asynccontextmanager": "contextmanager",
    "_async": "_sync",
    "concurrency_async": "concurrency_sync",
    "transport_async": "transport_sync",
}
_PREFIXED = re.compile(r"\bAsync(?=[A-Z])")
_HEADER = '"""{}"""\n\n# Made from `_async/{}` by scripts/generate_sync.py: change that one.\n'


def converted(source: str) -> str:
    """The sync form of one module's source."""
    lines = source.splitlines(keepends=True)
    edits: list[tuple[tuple[int, int], tuple[int, int], str]] = []
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == tokenize.NAME and token.string in ("async", "await"):
            if following is None or following.start[0] != token.end[0]:
                raise SystemExit(f"line {token.start[0]}: keep `{token.string}` and what follows it on one line")
            edits.append((token.start, following.start, ""))
        elif token.type == tokenize.NAME:
            new = NAMES.get(token.string) or _PREFIXED.sub("", token.string)
            edits.append((token.start, token.end, new))
        elif token.type == tokenize.STRING:
            edits.append((token.start, token.end, _PREFIXED.sub("", token.string)))
    for (start_row, start), (end_row, end), new in reversed(edits):
        head, tail = lines[start_row - 1][:start], lines[end_row - 1][end:]
        lines[start_row - 1 : end_row] = [head + new + tail]
    return "".join(lines)


def marked(text: str, name: str) -> str:
    """The module with the note that it is generated, below its docstring."""
    if name == "__init__.py":
        return (
            '"""The sync form of the client, generated from `_async` by scripts/generate_sync.py: never edit it."""\n'
        )
    first, rest = text.split("\n", 1)
    return _HEADER.format(first.strip('"'), name) + rest


def laid_out(text: str, path: Path) -> str:
    """Through ruff, with the repository's settings."""
    ruff = [sys.executable, "-m", "ruff"]
    for arguments in (["check", "--select", "I,UP028", "--fix", "--unsafe-fixes", "--quiet"], ["format", "--quiet"]):
        command = [*ruff, *arguments, "--stdin-filename", str(path), "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, timeout=60)  # noqa: S603
        if done.returncode != 0:
            raise SystemExit(f"{path}: ruff: {done.stderr}")
        text = done.stdout
    return text


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    if arguments and not check:
        print(__doc__, file=sys.stderr)
        return 2
    stale = []
    sources = sorted(SOURCE.glob("*.py"))
    for source in sources:
        target = TARGET / source.name
        text = laid_out(marked(converted(source.read_text()), source.name), target)
        if not target.exists() or target.read_text() != text:
            stale.append(target)
            if not check:
                target.write_text(text)
    for target in TARGET.glob("*.py"):
        if not (SOURCE / target.name).exists():
            stale.append(target)
            if not check:
                target.unlink()
    for path in stale:
        print(f"{'stale' if check else 'wrote'}: {path.relative_to(ROOT)}")
    if check and stale:
        print("run: python scripts/generate_sync.py", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
