"""Run the attacks on the walls and write what came of each to docs/attacks.md: `make attacks`.

Arguments go to pytest. The exit code is pytest's; the page is written whether they held or not.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs/attacks.md"
#: These attack the server, whatever the wall.
NO_WALL: Final = ("test_layers", "test_lying_agent")


def runsc() -> str:
    if shutil.which("runsc") is None:
        return "none"
    said = subprocess.run(["runsc", "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S607
    return said.splitlines()[0].removeprefix("runsc version ") if said else "unknown"


def row(case: ElementTree.Element) -> tuple[str, str, str]:
    """Wall, test and result."""
    module, name = case.get("classname", "").rpartition(".")[2], case.get("name", "")
    wall = "gVisor" if "gvisor" in module or "[gvisor" in name else "bubblewrap"
    if module in NO_WALL:
        wall = "server"
    result = "held"
    if (skipped := case.find("skipped")) is not None:
        result = f"not run: {skipped.get('message', '')}"
    elif case.find("failure") is not None or case.find("error") is not None:
        result = "**failed**"
    return wall, f"`{module}::{name}`".replace("|", "\\|"), result.replace("|", "\\|").replace("\n", " ")


def page(rows: list[tuple[str, str, str]]) -> str:
    """Docs in Markdown."""
    counted = Counter(result.partition(":")[0].strip("*") for _, _, result in rows)
    lines = [
        "# Attacks on the walls: the last run",
        "",
        "Made by `make attacks`; run it on your machine to see what its kernel holds. What each test is for: "
        "[security.md](security.md).",
        "",
        "| date | kernel | runsc | user | results |",
        "|---|---|---|---|---|",
        f"| {datetime.now(UTC):%Y-%m-%d} | {os.uname().release} {os.uname().machine} | {runsc()} "
        f"| {'root' if os.geteuid() == 0 else 'not root'} "
        f"| {', '.join(f'{number} {what}' for what, number in counted.most_common())} |",
        "",
        "| wall | test | result |",
        "|---|---|---|",
        *(f"| {' | '.join(cells)} |" for cells in sorted(rows)),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="runra-attacks-") as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}", *sys.argv[1:], str(ROOT / "tests/attacks")]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode  # noqa: S603
        # Without tests there is nothing to write: pytest could not begin, or was interrupted.
        if code in (0, 1):
            cases = ElementTree.parse(report).getroot().iter("testcase")  # noqa: S314 - our own pytest wrote it
            PAGE.write_text(page([row(case) for case in cases]))
    sys.exit(code)


if __name__ == "__main__":
    main()
