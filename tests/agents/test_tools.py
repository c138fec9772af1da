"""The six tools, on a sandbox with GNU's userland and on one with busybox's."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from runra.runtime import Runra, RunraError, Sandbox
from runra.runtime.agents.hands import SandboxTools, ToolFailed, ToolOutput, own_tools
from runra.runtime.agents.hands.patterns import matcher
from tests.providers.conftest import docker_url  # noqa: F401 - a fixture
from tests.providers.engine import IMAGE

#: Processes the tests start and what the tools keep; the shell that looks is left out.
LEFT = "for p in /proc/[0-9]*; do tr '\\0' ' ' < $p/cmdline; echo; done 2>/dev/null | grep -E '[s]leep 4242'; ls -d /tmp/.runra-* 2>/dev/null; true"


class Hands:
    """The tools by name, and the sandbox they work in."""

    def __init__(self, sandbox: Sandbox, **options: Any) -> None:
        self.sandbox = sandbox
        self.tools = SandboxTools(sandbox, **options)
        self._by_name = {tool.name: tool for tool in self.tools.offered()}

    async def full(self, name: str, **given: Any) -> ToolOutput:
        return await self._by_name[name].call(given)

    async def __call__(self, name: str, **given: Any) -> str:
        return (await self.full(name, **given)).text

    async def fails(self, name: str, **given: Any) -> str:
        with pytest.raises(ToolFailed) as caught:
            await self.full(name, **given)
        return str(caught.value)


@pytest.fixture(params=["runra-sandbox", "docker"])
async def hands(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Hands]:
    if request.param == "docker":
        url = request.getfixturevalue("docker_url")
        sandbox = {"provider": "docker", "config": {"url": url, "pull": "never", "stateDir": str(tmp_path / "state")}}
        async with (
            Runra(sandbox=sandbox) as runra,
            await runra.create_sandbox(image=IMAGE, network={"egress": {"default": "deny"}}) as box,
        ):
            yield Hands(box)
    else:
        noted = json.loads(request.getfixturevalue("real").config.read_text())
        async with (
            Runra(sandbox={"provider": "runra-sandbox", "apiKey": noted["apiKey"], "apiUrl": noted["apiUrl"]}) as runra,
            await runra.create_sandbox(image="host") as box,
        ):
            yield Hands(box)


async def test_bash(hands: Hands) -> None:
    here = hands.sandbox.workdir
    assert await hands("bash", command="pwd") == here
    assert await hands("bash", command="echo out; echo err >&2; echo out again") == "out\nerr\nout again"
    # The folder is kept, whatever way a command ends; positions and quotes in it are its own.
    assert await hands.full("bash", command="mkdir -p 'a b' && cd 'a b' && exit 3") == ToolOutput(
        "[exit code 3]", True, 3
    )
    assert await hands("bash", command='pwd; echo "[$#]" \'"$1"\'') == f'{here}/a b\n[0] "$1"'
    await hands("write", path="near.txt", content="x")
    assert await hands("bash", command="ls") == "near.txt"
    assert (await hands("bash", command="true")) == "(no output)"
    assert "exit code 127" in await hands("bash", command="no-such-program")
    text = await hands("bash", command="i=0; while [ $i -lt 9000 ]; do echo line $i; i=$((i+1)); done; echo the end")
    assert text.startswith("line 0\n")
    assert text.endswith("the end")
    assert "characters left out" in text
    assert len(text) < 30_100
    told = await hands.fails("bash", command="echo begun; sleep 4242", timeoutMs=700)
    assert "begun" in told
    assert "background" in told
    assert "timeoutMs" in await hands.fails("bash", command="true", timeoutMs=10_000_000)
    assert "unknown option" in await hands.fails("bash", cmd="true")
    await hands.tools.close()
    assert (await hands.sandbox.exec(["sh", "-c", LEFT])).stdout == ""


async def test_a_folder_that_is_gone(hands: Hands) -> None:
    await hands("bash", command="mkdir /tmp/gone && cd /tmp/gone")
    await hands.sandbox.exec(["rmdir", "/tmp/gone"])
    told = await hands("bash", command="pwd")
    assert told == f"[the folder /tmp/gone is gone; this is {hands.sandbox.workdir}]\n{hands.sandbox.workdir}"
    assert await hands("bash", command="pwd") == hands.sandbox.workdir


async def test_cancelled_in_the_middle(hands: Hands) -> None:
    task = asyncio.create_task(hands.full("bash", command="touch /tmp/begun; sleep 4242 & sleep 4242"))
    async with asyncio.timeout(20):
        while not await hands.sandbox.files.exists("/tmp/begun"):
            await asyncio.sleep(0.05)
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 1.0
    await hands.tools.close()
    assert (await hands.sandbox.exec(["sh", "-c", LEFT])).stdout == ""


async def test_read_and_write(hands: Hands) -> None:
    assert (
        await hands("write", path="deep/er/a.txt", content="one\ntwo ü\nthree")
        == f"Wrote 16 bytes to {hands.sandbox.workdir}/deep/er/a.txt."
    )
    assert await hands("read", path="deep/er/a.txt") == "     1\tone\n     2\ttwo ü\n     3\tthree"
    assert (
        await hands("read", path="deep/er/a.txt", offset=2, limit=1)
        == "     2\ttwo ü\n[lines 2 to 2 of 3; go on with offset 3]"
    )
    assert "beyond its end" in await hands.fails("read", path="deep/er/a.txt", offset=9)
    await hands("write", path="long.txt", content="".join(f"line {n} {'x' * 40}\n" for n in range(1, 2001)))
    text = await hands("read", path="long.txt")
    assert text.startswith("     1\tline 1 x")
    shown = int(text.rpartition("of 2000; go on with offset ")[2].rstrip("]")) - 1
    assert f"[lines 1 to {shown} of 2000" in text
    assert (await hands("read", path="long.txt", offset=shown + 1, limit=1)).startswith(
        f"{shown + 1:>6}\tline {shown + 1} "
    )
    assert (await hands("read", path="long.txt", offset=2000)).startswith("  2000\tline 2000")
    await hands("write", path="wide.txt", content="y" * 10_000)
    assert len(await hands("read", path="wide.txt")) < 2100
    await hands("write", path="empty", content="")
    assert "is empty" in await hands("read", path="empty")
    await hands.sandbox.files.write("binary", b"\x7fELF\0\1")
    assert "binary" in await hands.fails("read", path="binary")
    assert "not found" in await hands.fails("read", path="nothing")
    assert "is a directory" in await hands.fails("read", path="deep")
    await hands.sandbox.exec(["mkfifo", "pipe"])
    assert "no plain file" in await hands.fails("read", path="pipe")
    assert "path" in await hands.fails("read", path="a\0b")


async def test_edit(hands: Hands) -> None:
    await hands("write", path="a.py", content="x = 1\r\ny = 1\nz = 2\n")
    await hands.sandbox.exec(["chmod", "755", "a.py"])
    assert (
        await hands("edit", path="a.py", oldString="z = 2", newString="z = 3")
        == f"Replaced one place in {hands.sandbox.workdir}/a.py, from line 3 on."
    )
    assert "2 times" in await hands.fails("edit", path="a.py", oldString="= 1", newString="= 9")
    assert "2 places" in await hands("edit", path="a.py", oldString="= 1", newString="= 9", replaceAll=True)
    assert await hands.sandbox.files.read("a.py") == "x = 9\r\ny = 9\nz = 3\n"
    assert (await hands.sandbox.exec(["stat", "-c", "%a", "a.py"])).stdout.strip() == "755"
    assert "other letters" in await hands.fails("edit", path="a.py", oldString="X = 9", newString="")
    assert "the same" in await hands.fails("edit", path="a.py", oldString="z", newString="z")
    assert "not found" in await hands.fails("edit", path="b.py", oldString="z", newString="q")
    # Parallel edits of one file all arrive.
    await hands("write", path="many", content="".join(f"<{n}>" for n in range(8)))
    await asyncio.gather(*(hands("edit", path="many", oldString=f"<{n}>", newString=f"({n})") for n in range(8)))
    assert await hands.sandbox.files.read("many") == "".join(f"({n})" for n in range(8))


async def test_glob_and_grep(hands: Hands) -> None:
    for path, text in {
        "src/a.py": "import os\nvalue = 'Needle'\n",
        "src/sub/b.py": "needle = 1\n",
        "src/sub/c.ts": "const needle = 2\nlet other = 3\n",
        "-dash.py": "needle\n",
        ".git/config.py": "needle\n",
        "with space.py": "nothing\n",
    }.items():
        await hands("write", path=f"{hands.sandbox.workdir}/p/{path}", content=text)
    await hands.sandbox.files.write("p/blob.bin", b"needle\0needle\n")
    base = f"{hands.sandbox.workdir}/p"
    found = await hands("glob", pattern="p/**/*.py")
    assert found.splitlines() == sorted(
        f"{base}/{name}" for name in ("-dash.py", "src/a.py", "src/sub/b.py", "with space.py")
    )
    assert await hands("glob", pattern="*.{py,ts}", path="p/src/sub") == f"{base}/src/sub/b.py\n{base}/src/sub/c.ts"
    assert await hands("glob", pattern=f"{base}/src/?.py") == f"{base}/src/a.py"
    assert "No file" in await hands("glob", pattern="*.rs", path="p")
    assert "not found" in await hands.fails("glob", pattern="*", path="nowhere")
    lines = (await hands("grep", pattern="^(const )?needle", path="p")).splitlines()
    assert sorted(lines) == ["-dash.py:1:needle", "src/sub/b.py:1:needle = 1", "src/sub/c.ts:1:const needle = 2"]
    assert sorted(
        (
            await hands("grep", pattern="NEEDLE", path="p", ignoreCase=True, include="*.{py,c}", filesOnly=True)
        ).splitlines()
    ) == ["-dash.py", "src/a.py", "src/sub/b.py"]
    assert (
        await hands("grep", pattern="other", path="p/src/sub/c.ts", context=1)
        == f"{base}/src/sub/c.ts-1-const needle = 2\n{base}/src/sub/c.ts:2:let other = 3"
    )
    assert "No match" in await hands("grep", pattern="-e", path="p")
    assert "more lines" in await hands("grep", pattern="e", path="p", limit=1)
    assert "regular expression" in await hands.fails("grep", pattern="(", path="p")
    assert "not found" in await hands.fails("grep", pattern="x", path="nowhere")


async def test_a_sandbox_that_is_gone_is_no_tools_failure(hands: Hands) -> None:
    await hands.sandbox.terminate()
    with pytest.raises(RunraError):
        await hands("bash", command="true")


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("**/*.py", "a.py", True),
        ("**/*.py", "x/y/a.py", True),
        ("*.py", "x/a.py", False),
        ("src/**", "src/a/b", True),
        ("a/**/b/*.{c,h}", "a/q/r/b/x.c", True),
        ("a/**/b/*.{c,h}", "a/q/r/x.c", False),
        ("**/x/**/y", "x/x/y", True),
        ("[ab]?.txt", "bz.txt", True),
        ("[!ab].txt", "a.txt", False),
        ("*a" * 400, "a" * 250 + "b", False),
        ("**/a/" * 400 + "b", "a/" * 2000 + "c", False),
    ],
)
def test_patterns(pattern: str, name: str, fits: bool) -> None:
    began = time.monotonic()
    assert matcher(pattern)(name) is fits
    assert time.monotonic() - began < 5.0, "no pattern may take for ever"


async def test_own_tools() -> None:
    def add(a: int, b: int = 2) -> int:
        """Adds."""
        return a + b

    async def ask(run: Any, name: str) -> dict[str, Any]:
        return {"run": run, "name": name}

    def broken() -> None:
        raise ValueError("no luck")

    class Object:
        name = "thing"
        description = "A thing."
        input_schema: ClassVar = {"type": "object"}

        async def call(self, given: Any) -> str:
            return f"got {given}"

    tools = {tool.name: tool for tool in own_tools([add, ask, broken, Object()], run="the run")}  # type: ignore[arg-type]
    assert (tools["add"].description, list(tools["ask"].input_schema["properties"])) == ("Adds.", ["name"])
    assert (await tools["add"].call({"a": 4})).text == "6"
    assert (await tools["ask"].call({"name": "n"})).text == '{"run": "the run", "name": "n"}'
    assert (await tools["thing"].call({"x": 1})).text == "got {'x': 1}"
    for name, given, words in (
        ("add", {"a": "x"}, "does not fit"),
        ("add", {"c": 1}, "no such parameters: c"),
        ("add", {"_raw": "{"}, "JSON"),
        ("broken", {}, "ValueError: no luck"),
    ):
        with pytest.raises(ToolFailed, match=words):
            await tools[name].call(given)
    for wrong, words in (
        ([3], "neither"),
        ([add, add], "two tools"),
        ([{"name": "bash", "input_schema": {}, "call": add}], "two tools"),
        ([lambda: 1], "no name"),
    ):
        with pytest.raises(RunraError, match=words):
            own_tools(wrong)
