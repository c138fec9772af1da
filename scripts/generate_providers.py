"""Make the table of capabilities in `docs/providers.md` from the providers' own declarations.

python scripts/generate_providers.py          write it when it changed
python scripts/generate_providers.py --check  exit with 1 when it is stale
"""

from __future__ import annotations

import sys
from pathlib import Path

from runra.runtime.capabilities import MEANING
from runra.runtime.registry import SANDBOX_PROVIDERS

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "providers.md"
BEGIN, END = "<!-- capabilities: generated, see scripts/generate_providers.py -->\n", "<!-- end of capabilities -->\n"
ORDER = ["runra-sandbox", "docker", "e2b", "cubesandbox"]


def table() -> str:
    """One row an ability, one column a provider; notes below."""
    providers = {id: SANDBOX_PROVIDERS.factory(id).capabilities for id in ORDER}  # type: ignore[attr-defined]
    lines = [f"| ability | what it is | {' | '.join(f'`{id}`' for id in ORDER)} |", f"|---|---|{'---|' * len(ORDER)}"]
    notes: list[str] = []
    for ability, meaning in MEANING.items():
        cells = []
        for capabilities in providers.values():
            cell = "yes" if ability in capabilities else "–"
            note = capabilities.notes.get(ability)
            if note is not None:
                if note not in notes:
                    notes.append(note)
                cell += f" [{notes.index(note) + 1}]"
            cells.append(cell)
        lines.append(f"| `{ability}` | {meaning} | {' | '.join(cells)} |")
    lines.append("")
    lines += [f"[{number}] {note}  " for number, note in enumerate(notes, 1)]
    return "\n".join(lines) + "\n"


def written(text: str) -> str:
    head, _, rest = text.partition(BEGIN)
    _, found, tail = rest.partition(END)
    if not found:
        raise SystemExit(f"{TARGET}: the marks of the table are gone")
    return f"{head}{BEGIN}{table()}{END}{tail}"


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    if arguments and not check:
        print(__doc__, file=sys.stderr)
        return 2
    old = TARGET.read_text()
    new = written(old)
    if old == new:
        return 0
    if check:
        print(f"stale: {TARGET.relative_to(ROOT)}; run: python scripts/generate_providers.py", file=sys.stderr)
        return 1
    TARGET.write_text(new)
    print(f"wrote: {TARGET.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
