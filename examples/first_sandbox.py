"""Create a sandbox, run a program in it, move files both ways. Start a server first: `runra serve`."""

import tempfile
from pathlib import Path

from runra import Runra

PROGRAM = """
import json, pathlib
numbers = json.loads(pathlib.Path("numbers.json").read_text())
for number in numbers:
    print(number, "squared is", number**2, flush=True)
pathlib.Path("sum.txt").write_text(str(sum(n**2 for n in numbers)))
"""

with Runra() as client, client.sandboxes.create(image="host") as sandbox:
    print("running:", sandbox.id)
    sandbox.files.write("numbers.json", "[1, 2, 3]")
    sandbox.files.write("program.py", PROGRAM)
    result = sandbox.exec("python3 program.py", on_stdout=lambda line: print("  |", line), check=True)
    print("exit code", result.exit_code, "after", result.duration_ms, "ms; sum:", sandbox.files.read("sum.txt"))
    with tempfile.TemporaryDirectory() as folder:
        moved = sandbox.files.download("/workspace", Path(folder) / "workspace")
        print("downloaded", moved.files, "files,", moved.bytes, "bytes")
print("now it is", sandbox.state)
