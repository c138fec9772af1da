"""Write the catalogue of events into docs/observability.md, from `runra.event_catalogue`.

python scripts/generate_events.py          write it
python scripts/generate_events.py --check  exit with 1 when the document is stale
"""

from __future__ import annotations

import sys
from pathlib import Path

from runra.event_catalogue import CATALOGUE

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "observability.md"
BEGIN = "<!-- made by scripts/generate_events.py from src/runra/event_catalogue.py: change that one -->"
END = "<!-- end of what is made -->"


def catalogue() -> str:
    """The table, a row for each type."""
    rows = ["| type | level | meaning | data |", "|---|---|---|---|"]
    for type, kind in CATALOGUE.items():
        fields = "; ".join(f"`{name}` {meaning}" for name, meaning in kind.fields.items())
        rows.append(f"| `{type}` | {kind.level} | {kind.meaning} | {fields} |")
    return "\n".join(rows)


def current(text: str) -> str:
    """The document with the table as it must be."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{DOCUMENT}: the marks around the catalogue are gone")
    return f"{before}{BEGIN}\n\n{catalogue()}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    text = DOCUMENT.read_text()
    wanted = current(text)
    if text == wanted:
        return 0
    if arguments:
        print(f"stale: {DOCUMENT.name}; run: python scripts/generate_events.py", file=sys.stderr)
        return 1
    DOCUMENT.write_text(wanted)
    print(f"wrote: {DOCUMENT.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
