"""Files and folders, of text and of any bytes."""

from __future__ import annotations

import pytest

from runra.runtime.sandbox import Sandbox
from runra.runtime.testing.bench import Bench, refused


@pytest.mark.parametrize("content", ["", "text ü\n", "no end", "x" * 500_000])
def test_text_files(bench: Bench, sandbox: Sandbox, content: str) -> None:
    bench.run(sandbox.files.write("folder/new/a file ü.txt", content))
    assert bench.run(sandbox.files.read("folder/new/a file ü.txt")) == content


def test_bytes_survive(bench: Bench, sandbox: Sandbox) -> None:
    data = bytes(range(256)) * 2000
    bench.run(sandbox.files.write("/tmp/bytes", data))
    assert bench.run(sandbox.files.read("/tmp/bytes", format="bytes")) == data
    assert refused(lambda: bench.run(sandbox.files.read("/tmp/bytes"))).code == "INVALID_REQUEST"


def test_folders(bench: Bench, sandbox: Sandbox) -> None:
    files = sandbox.files
    bench.run(files.mkdir("deep/er", recursive=True))
    bench.run(files.write("deep/b", "12345"))
    bench.run(files.write("deep/-rf", "x"))
    listed = {entry.name: (entry.is_directory, entry.size_bytes) for entry in bench.run(files.list("deep"))}
    assert listed["er"][0] is True
    assert (listed["b"], listed["-rf"]) == ((False, 5), (False, 1))
    assert bench.run(files.exists("deep/b"))
    bench.run(files.delete("deep/-rf"))
    bench.run(files.delete("deep", recursive=True))
    assert not bench.run(files.exists("deep"))


def test_what_is_wrong_with_a_file_is_said(bench: Bench, sandbox: Sandbox) -> None:
    error = refused(lambda: bench.run(sandbox.files.read("/tmp/no/such")))
    assert (error.code, error.details.get("reason")) == ("INVALID_REQUEST", "not_found")
    assert refused(lambda: bench.run(sandbox.files.read("/tmp"))).code == "INVALID_REQUEST"
    assert refused(lambda: bench.run(sandbox.files.list("/tmp/no"))).code == "INVALID_REQUEST"
