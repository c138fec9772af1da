"""What a run changed: files before and after, and their difference as text."""

from __future__ import annotations

import asyncio

import pytest

from runra.errors import RunraError
from runra.runtime import AgentRun
from runra.runtime.changes import Changes
from tests.runtime.conftest import Make

BEFORE = r"""
mkdir -p src .git && cd /workspace
printf 'one\ntwo\nthree\n' > src/kept; printf 'old' > 'a name'; printf 'gone\n' > gone; printf '\000\001' > binary
ln -s gone link; echo x > .git/objects; printf 'same' > same; printf 'odd' > "$(printf 'new\nline')"
"""
AFTER = r"""
cd /workspace
printf 'one\n2\nthree\n' > src/kept; printf 'new' > 'a name'; rm gone; printf '\000\002' > binary
ln -sfn src/kept link; echo y > .git/objects; echo made > src/made; ln -s /etc/passwd src/elsewhere
"""


async def test_created_modified_deleted_and_the_diff(make: Make) -> None:
    async with await make().create_sandbox() as sandbox:
        assert (await sandbox.exec(BEFORE)).exit_code == 0
        changes = Changes(sandbox, sandbox.workdir)
        await changes.begin(keep=True)
        assert (await sandbox.exec(AFTER)).exit_code == 0
        changed = await changes.end()
        assert changed.created == ["src/elsewhere", "src/made"]
        assert changed.modified == ["a name", "binary", "link", "src/kept"]
        assert (changed.deleted, changed.truncated) == (["gone"], False)
        diff = await changes.diff(changed) or ""
        assert "--- a/src/kept\n+++ b/src/kept\n@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n" in diff
        assert "-old\n\\ No newline at end of file\n+new\n\\ No newline at end of file\n" in diff
        assert "--- a/gone\n+++ /dev/null\n" in diff
        assert "+made\n" in diff
        assert "Binary or large file binary differs\n" in diff
        assert "-link to gone\n+link to src/kept\n" in diff
        assert "+link to /etc/passwd\n" in diff, "a link is shown, not what it leads to"
        assert "root:" not in diff
        await changes.close()
        assert (await sandbox.exec("ls -A /var/tmp")).stdout == ""


async def test_nothing_changed_in_a_folder_that_is_not_there(make: Make) -> None:
    async with await make().create_sandbox() as sandbox:
        changes = Changes(sandbox, "/not/there")
        await changes.begin(keep=True)
        changed = await changes.end()
        assert (changed.created, changed.modified, changed.deleted) == ([], [], [])
        await changes.close()


async def test_a_thousand_are_named(make: Make) -> None:
    async with await make().create_sandbox() as sandbox:
        changes = Changes(sandbox, sandbox.workdir)
        await changes.begin(keep=False)
        await sandbox.exec("seq 1 1005 | xargs touch")
        changed = await changes.end()
        assert (len(changed.created), changed.truncated) == (1000, True)
        assert await changes.diff(changed) is None


async def test_a_function_of_the_callers_gets_a_diff_when_it_asks_for_one(make: Make) -> None:
    async def agent(run: AgentRun) -> str:
        await run.sandbox.files.write("made.txt", "by me\n")
        return "done"

    runra = make(agent={"provider": "custom", "config": {"run": agent}})
    result = await runra.start("go", diff=True)
    assert result.files is not None
    assert result.files.created == ["made.txt"]
    assert "+by me\n" in (result.diff or "")
    assert (await runra.start("go")).files is None


async def test_an_agents_error_and_its_kind(make: Make) -> None:
    async def agent(run: AgentRun) -> str:
        raise RunraError("RATE_LIMITED", "too many", details={"kind": "rate_limit"}, retryable=True)

    result = await make(agent={"provider": "custom", "config": {"run": agent}}).start("go")
    assert result.failure is not None
    assert (result.failure.kind, result.failure.retryable, result.error) == ("rate_limit", True, "too many")
    assert result.cost_source == "none"


async def test_a_sandbox_that_ends_under_its_agent(make: Make) -> None:
    async def agent(run: AgentRun) -> str:
        await run.sandbox.terminate()
        return "all good"

    result = await make(agent={"provider": "custom", "config": {"run": agent}}).start("go")
    assert (result.success, result.failure and result.failure.kind) == (False, "sandbox")


@pytest.mark.parametrize("what", ["send_message", "stop"])
async def test_what_a_function_does_not_take(make: Make, what: str) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def agent(run: AgentRun) -> str:
        begun.set()
        await go.wait()
        return "done"

    runra = make(agent={"provider": "custom", "config": {"run": agent}})
    async with runra.stream("go") as run:
        await asyncio.wait_for(begun.wait(), 30)
        with pytest.raises(RunraError, match=r"takes no messages|cannot be stopped"):
            await (run.send_message("more") if what == "send_message" else run.stop())
        go.set()
        async for _ in run:
            pass
    assert run.result.success
    async with runra.stream("go") as run:
        await (run.send_message("too early to know") if what == "send_message" else run.stop())
        with pytest.raises(RunraError, match=r"takes no messages|cannot be stopped"):
            async for _ in run:
                pass
