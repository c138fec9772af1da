"""The life of a sandbox on a real node: every state, every way to end, and nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from runra.contract import SandboxPatch
from runra.errors import RunraError
from runra.node.agent.types import ExecSpec
from tests.hosting import NOTHING, Host, both_walls, bubblewrap_only, start_host, stop_host, until


@both_walls
async def test_run_and_terminate_leaves_nothing(host: Host) -> None:
    sandbox = await host.create()
    assert sandbox.info().state == "running"
    output, exit = await host.run(sandbox, "id -u; python3 -c 'print(6*7)'; hostname")
    assert output.splitlines() == ["0", "42", sandbox.id.removeprefix("sb_")]
    assert exit.code == 0
    await sandbox.terminate()
    info = sandbox.info()
    assert (info.state, info.termination_reason) == ("terminated", "user")
    await host.node.settled()
    await until(lambda: host.left() == NOTHING)
    assert host.kinds(sandbox) == ["sandbox.created", "sandbox.started", "sandbox.terminated"]
    with pytest.raises(RunraError) as caught:
        await host.run(sandbox, "true")
    assert caught.value.code == "INVALID_STATE"
    await sandbox.terminate()  # again is fine


@both_walls
async def test_root_inside_may_write_everywhere_and_nothing_reaches_the_host(host: Host) -> None:
    one, two = await host.create(), await host.create()
    marker = f"runra-test-{os.getpid()}"
    script = (
        f"touch /usr/{marker} /etc/{marker} /workspace/{marker} && rm /usr/bin/env && chown 1000:1000 /etc/{marker}"
    )
    _, exit = await host.run(one, script)
    assert exit.code == 0
    assert not Path("/usr", marker).exists()
    assert Path("/usr/bin/env").exists()
    output, _ = await host.run(two, f"ls /usr/{marker} /etc/{marker} 2>&1; cat /etc/machine-id")
    assert output.count("No such file") == 2
    other, _ = await host.run(one, "cat /etc/machine-id")
    assert other.strip() not in output


@bubblewrap_only("it looks at processes on the host, which are gVisor's (attacks/test_gvisor.py looks at those)")
async def test_inside_is_nobody_outside(host: Host) -> None:
    sandbox = await host.create()
    pid = sandbox.record.pid
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert set(map(int, fields["Uid"].split())) == {sandbox.record.first_id}
    assert fields["NoNewPrivs"].strip() == "1"
    for kind in ("user", "pid", "mnt", "net", "ipc", "uts", "cgroup"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    output, _ = await host.run(sandbox, "unshare -U true 2>&1; ls /proc/self/fd | wc -l; env; ls -A /sys")
    assert "unshare failed" in output
    assert "RUNRA" not in output


@both_walls
async def test_pause_stops_and_resume_continues(host: Host) -> None:
    sandbox = await host.create()
    async with sandbox.use() as agent:
        counter = await agent.exec(
            ExecSpec(command="i=0; while :; do echo $i; i=$((i+1)); sleep 0.02; done", env=sandbox.env)
        )
        stream = counter.output()
        await anext(stream)
        await sandbox.pause()
        await sandbox.pause()  # idempotent
        assert sandbox.info().state == "paused"
        assert sandbox.info().paused_at
        with pytest.raises(RunraError) as caught:
            await host.run(sandbox, "true")
        assert caught.value.code == "INVALID_STATE"
        seen = 0
        try:  # what was on its way when the freeze came may still arrive, then silence
            while True:
                async with asyncio.timeout(0.3):
                    seen = int((await anext(stream)).data.split()[-1])
        except TimeoutError:
            pass
        await sandbox.resume()
        await sandbox.resume()
        async with asyncio.timeout(5):
            process = await agent.attach(counter.pid)
            async for chunk in process.output():
                if int(chunk.data.split()[-1]) > seen + 5:
                    break
            process.detach()
        counter.detach()
    assert host.kinds(sandbox)[-2:] == ["sandbox.paused", "sandbox.resumed"]


@both_walls
async def test_each_transition_happens_once_under_concurrency(host: Host) -> None:
    sandbox = await host.create()
    await asyncio.gather(*(sandbox.pause() for _ in range(20)))
    await asyncio.gather(*(sandbox.resume() for _ in range(20)))
    assert host.kinds(sandbox).count("sandbox.paused") == 1
    assert host.kinds(sandbox).count("sandbox.resumed") == 1
    outcomes = await asyncio.gather(
        *(sandbox.terminate() for _ in range(10)), *(sandbox.pause() for _ in range(10)), return_exceptions=True
    )
    assert host.kinds(sandbox).count("sandbox.terminated") == 1
    assert all(outcome is None or outcome.code == "INVALID_STATE" for outcome in outcomes)  # type: ignore[union-attr]


@both_walls
async def test_a_caller_that_goes_away_leaves_no_transition_half_done(host: Host) -> None:
    sandbox = await host.create()
    for _ in range(5):
        task = asyncio.create_task(sandbox.pause())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: sandbox.info().state == "paused")
        await sandbox.resume()
    output, _ = await host.run(sandbox, "echo alive")
    assert output == "alive\n"


async def test_idle_pauses_and_work_does_not(host: Host) -> None:
    sandbox = await host.create(idleTimeoutMs=300)
    started = time.monotonic()
    _, exit = await host.run(sandbox, "sleep 0.8")
    assert exit.code == 0
    assert sandbox.info().state == "running"
    await until(lambda: sandbox.info().state == "paused")
    assert time.monotonic() - started >= 1.05
    paused = next(event for event in host.events if event.type == "sandbox.paused")
    assert paused.data["reason"] == "idle"
    await sandbox.resume()
    async with sandbox.use() as agent:  # a background process is work as well
        process = await agent.exec(ExecSpec(command="sleep 1.2", env=sandbox.env))
        process.detach()
    await asyncio.sleep(0.9)
    assert sandbox.info().state == "running"
    await until(lambda: sandbox.info().state == "paused")


async def test_lifetime_counts_running_time_only(host: Host) -> None:
    sandbox = await host.create(timeoutMs=900)
    await sandbox.pause()
    await asyncio.sleep(1.2)
    assert sandbox.info().state == "paused"
    await sandbox.resume()
    await until(lambda: "sandbox.terminated" in host.kinds(sandbox), 3)
    info = sandbox.info()
    assert (info.state, info.termination_reason) == ("terminated", "timeout")
    ended = next(event for event in host.events if event.type == "sandbox.terminated")
    assert 800 <= ended.data["totalRuntimeMs"] < 1400


async def test_patch_moves_the_deadline(host: Host) -> None:
    sandbox = await host.create(timeoutMs=500)
    await sandbox.update(SandboxPatch(timeout_ms=60_000, metadata={"a": "b"}))
    await asyncio.sleep(0.8)
    assert sandbox.info().state == "running"
    assert sandbox.info().metadata == {"a": "b"}
    await sandbox.update(SandboxPatch(timeout_ms=1))
    await until(lambda: sandbox.info().state == "terminated", 3)


@both_walls
async def test_auto_resume(host: Host) -> None:
    sandbox = await host.create(autoResume=True)
    await sandbox.pause()
    output, _ = await host.run(sandbox, "echo back")
    assert output == "back\n"
    assert sandbox.info().state == "running"


@bubblewrap_only("gVisor's memory is one: when it is gone the sandbox ends (attacks/test_gvisor.py has its bombs)")
async def test_memory_is_a_hard_limit_and_the_sandbox_lives_on(host: Host) -> None:
    sandbox = await host.create(resources={"memoryMb": 64})
    before = sandbox.oom_kills()
    _, exit = await host.run(sandbox, "python3 -c 'x = bytearray(1 << 28)'")
    assert (exit.code, exit.signal) == (137, None) or exit.signal == "SIGKILL"
    assert sandbox.oom_kills() > before
    output, _ = await host.run(sandbox, "echo alive")
    assert output == "alive\n"
    assert (await sandbox.metrics())["memoryBytes"] < 64 << 20


async def test_processes_are_limited(tmp_path: Path) -> None:
    host = await start_host(tmp_path / "data", max_pids=40)
    sandbox = await host.create()
    output, _ = await host.run(sandbox, "for i in $(seq 100); do sleep 5 & done 2>&1; echo done")
    assert "fork" in output
    await stop_host(host)
    await until(lambda: host.left() == NOTHING)


@both_walls
async def test_death_of_process_1_ends_the_sandbox(host: Host) -> None:
    sandbox = await host.create()
    os.kill(sandbox.record.pid, signal.SIGKILL)
    await until(lambda: sandbox.info().state == "terminated")
    assert sandbox.info().termination_reason == "error"


@bubblewrap_only("it stops the process the node watches, the keeper of gVisor, and the agent goes on")
async def test_a_stuck_agent_hurts_no_other_call(host: Host) -> None:
    stuck, fine = await host.create(), await host.create()
    os.kill(stuck.record.pid, signal.SIGSTOP)
    hanging = asyncio.create_task(host.run(stuck, "true"))
    for _ in range(5):
        output, _ = await host.run(fine, "echo fine")
        assert output == "fine\n"
    with pytest.raises(RunraError):
        async with asyncio.timeout(20):
            await hanging
    async with asyncio.timeout(5):
        await stuck.terminate()


async def test_what_the_launcher_cannot_take_is_refused_at_once(host: Host) -> None:
    """Too many words, too long, too many descriptors, a verb it does not know: each with its reason, and it goes on."""
    launcher = host.node._launcher
    async with asyncio.timeout(10):
        for words, fds, why in (
            (["mount"] * 5_000, [], "Argument list too long"),
            (["x" * 400_000], [], "Message too long"),
            (["--", "/bin/true"], [0] * 20, "Message too long"),
        ):
            with pytest.raises(RunraError, match=why):
                await launcher.spawn(words, fds)
        for verb, more in (("dance", ["x"]), ("remove", []), ("remove", ["/nowhere", "/at/all"])):
            with pytest.raises(RunraError, match="Bad message"):
                await launcher._request(verb, more, [])
        await launcher.run("true")


@both_walls
async def test_a_dead_launcher_is_replaced(host: Host) -> None:
    await host.create()
    os.kill(host.node._launcher._pid, signal.SIGKILL)
    await until(lambda: host.node._launcher._socket is None)
    sandbox = await host.create()
    output, _ = await host.run(sandbox, "echo new")
    assert output == "new\n"


@bubblewrap_only("it breaks bubblewrap's start (node/test_gvisor_network.py breaks gVisor's)")
async def test_a_start_that_fails_leaves_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    wall = host.node._isolations["bubblewrap"]
    monkeypatch.setattr(wall, "_agent", Path("/etc/hostname"))  # no program
    for _ in range(3):
        with pytest.raises(RunraError) as caught:
            await host.create()
        assert caught.value.code == "INTERNAL_ERROR"
    await host.node.settled()
    await until(lambda: host.left() == NOTHING)


async def test_burst(host: Host) -> None:
    sandboxes = await asyncio.gather(*(host.create() for _ in range(30)))
    results = await asyncio.gather(*(host.run(sandbox, "cat /etc/hostname") for sandbox in sandboxes))
    assert [output.strip() for output, _ in results] == [sandbox.id[3:] for sandbox in sandboxes]
    await asyncio.gather(*(sandbox.terminate() for sandbox in sandboxes))


@pytest.mark.parametrize(
    "config",
    [
        {"image": "No/Name:At:All"},
        {"network": {"egress": {"allow": ["http://example.com"]}}},
        {"isolation": "magic"},
    ],
)
async def test_what_cannot_be_given_is_refused(host: Host, config: dict[str, object]) -> None:
    with pytest.raises(RunraError) as caught:
        await host.create(**config)
    assert caught.value.status == 400


@both_walls
async def test_a_pause_does_not_use_up_a_commands_time(host: Host) -> None:
    sandbox = await host.create()
    async with sandbox.use() as agent:
        process = await agent.exec(ExecSpec(command="sleep 1.5; echo done", env=sandbox.env, timeout_ms=2500))
        await asyncio.sleep(0.3)
        await sandbox.pause()
        await asyncio.sleep(3)
        await sandbox.resume()
        output = b"".join([chunk.data async for chunk in process.output()])
        exit = await process.wait()
    assert (output, exit.code, exit.timed_out) == (b"done\n", 0, False)


@pytest.mark.parametrize("delay_ms", [0, 2, 5, 10, 20])
async def test_ending_one_that_is_being_made(host: Host, delay_ms: int) -> None:
    """Its id is known before it runs (`sandbox.created`, the list): ending it then ends it, once."""
    creating = asyncio.create_task(host.create())
    await until(lambda: bool(host.node.sandboxes))
    sandbox = next(iter(host.node.sandboxes.values()))
    await asyncio.sleep(delay_ms / 1000)
    await sandbox.terminate()
    outcome = (await asyncio.gather(creating, return_exceptions=True))[0]
    assert outcome is sandbox or (isinstance(outcome, RunraError) and outcome.code == "INVALID_STATE")
    assert (sandbox.info().state, sandbox.info().termination_reason) == ("terminated", "user")
    await asyncio.sleep(0.1)
    kinds = host.kinds(sandbox)
    assert kinds in (
        ["sandbox.created", "sandbox.terminated"],
        ["sandbox.created", "sandbox.started", "sandbox.terminated"],
    )


async def test_a_clock_set_back_moves_no_deadline(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = await host.create(timeoutMs=700)
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 3_600_000_000_000)
    await until(lambda: sandbox.info().state == "terminated", 3)
    assert sandbox.info().termination_reason == "timeout"


@bubblewrap_only("gVisor's memory is one: when it is gone the sandbox ends (attacks/test_gvisor.py has its bombs)")
async def test_an_old_oom_is_not_blamed_for_a_later_end(host: Host) -> None:
    sandbox = await host.create(resources={"memoryMb": 64})
    await host.run(sandbox, "python3 -c 'x = bytearray(1 << 28)'")
    assert sandbox.oom_kills() > 0
    os.kill(sandbox.record.pid, signal.SIGKILL)
    await until(lambda: sandbox.info().state == "terminated")
    assert sandbox.info().termination_reason == "error"


async def test_idle_is_tried_again_after_a_failure(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    sandbox = await host.create(idleTimeoutMs=200)
    real, failures = sandbox.cgroup.freeze, []

    async def fails_once(timeout: float = 10.0) -> None:
        if not failures:
            failures.append(1)
            raise RunraError("INTERNAL_ERROR", "did not stop")
        await real(timeout)

    monkeypatch.setattr(sandbox.cgroup, "freeze", fails_once)
    await until(lambda: sandbox.info().state == "paused", 5)
    assert failures


async def test_disk_use_cannot_be_led_out(host: Host, tmp_path: Path) -> None:
    """A link in the place of a folder counts as a link, whoever looks."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "big").write_bytes(b"x" * (8 << 20))
    sandbox = await host.create()
    await host.run(sandbox, f"ln -s {outside} /workspace/out; head -c 1M /dev/urandom > /workspace/mine; sync")
    assert 1 << 20 <= (await sandbox.metrics())["diskBytes"] < 4 << 20
