"""What every sandbox provider must do, and what it must do when it declares an ability. See `runra.runtime.testing`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

import pytest

from runra.contract.network import Egress, Network
from runra.errors import RunraError
from runra.events import Event
from runra.runtime import Runra
from runra.runtime.capabilities import Ability, Capabilities
from runra.runtime.registry import SANDBOX_PROVIDERS
from runra.runtime.sandbox import Sandbox

T = TypeVar("T")

#: What no step may take longer than, in seconds.
STEP_S = 60.0
_ID = "under-test"
SECRET: Final = {"alias": "api", "host": "example.com", "header": "Authorization", "value": "Bearer of-the-bench"}


class Bench:
    """A runtime on the provider under test, driven from plain tests: one event loop for all of them."""

    def __init__(self, factory: Callable[[], Any], config: dict[str, Any], image: str) -> None:
        self._factory, self._config = factory, config
        self.image = image
        self.runner = asyncio.Runner()
        self.runra = self.another()
        self.can: Capabilities = self.runra.provider.capabilities
        self.events: list[Event] = []
        self.runra.on("*", self.events.append)

    def another(self) -> Runra:
        """A further runtime on the same provider, as after a restart."""
        SANDBOX_PROVIDERS.register(_ID, self._factory)
        try:
            return Runra(sandbox={"provider": _ID, "config": self._config})
        finally:
            SANDBOX_PROVIDERS.unregister(_ID)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(STEP_S):
                return await work

        return self.runner.run(bounded())

    def needs(self, *abilities: Ability) -> None:
        for ability in abilities:
            if ability not in self.can:
                pytest.skip(f"the provider does not declare {ability}")

    def create(self, **options: Any) -> Sandbox:
        return self.run(self.runra.create_sandbox(image=self.image, **options))

    def of(self, sandbox: Sandbox) -> list[str]:
        return [event.type for event in self.events if event.sandbox_id == sandbox.id]

    def until(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        async def wait() -> None:
            async with asyncio.timeout(seconds):
                while not condition():
                    await asyncio.sleep(0.02)

        self.run(wait())

    def alive(self) -> set[str]:
        return {one.id for one in self.run(self.runra.list_sandboxes()) if one.state != "terminated"}


@pytest.fixture(scope="module")
def bench(runra_provider: tuple[Any, dict[str, Any], str]) -> Iterator[Bench]:
    made = Bench(*runra_provider)
    try:
        yield made
    finally:
        made.run(made.runra.dispose())
        made.runner.close()


@pytest.fixture(scope="module")
def sandbox(bench: Bench) -> Iterator[Sandbox]:
    """One for all tests that leave it as it was."""
    made = bench.create()
    try:
        yield made
    finally:
        bench.run(made.terminate())


def refused(work: Callable[[], Any]) -> RunraError:
    with pytest.raises(RunraError) as caught:
        work()
    return caught.value


# --- life --------------------------------------------------------------------------------------------------------


def test_a_sandbox_is_made_found_and_ended(bench: Bench) -> None:
    sandbox = bench.create()
    assert sandbox.state == "running"
    assert sandbox.image == bench.image
    assert sandbox.handle.created_at.endswith("Z")
    found = bench.run(bench.runra.get_sandbox(sandbox.id))
    assert found is not None
    assert (found.id, found.state) == (sandbox.id, "running")
    assert sandbox.id in bench.alive()
    bench.run(sandbox.terminate())
    bench.run(sandbox.terminate())  # ending what has ended is fine
    assert sandbox.id not in bench.alive()
    gone = bench.run(bench.runra.get_sandbox(sandbox.id))
    assert gone is None or gone.state == "terminated"
    assert refused(lambda: bench.run(sandbox.exec("true"))).code in ("SANDBOX_NOT_FOUND", "INVALID_STATE")


@pytest.mark.parametrize("id", ["sb_0000000000000000", "no-such-thing", "../../etc", "a b", "x" * 300])
def test_an_id_there_is_none_of(bench: Bench, id: str) -> None:
    assert bench.run(bench.runra.get_sandbox(id)) is None
    assert refused(lambda: bench.run(bench.runra.provider.execute(id, "true"))).code == "SANDBOX_NOT_FOUND"


def test_a_cancelled_create_leaves_nothing(bench: Bench) -> None:
    before = bench.alive()

    async def interrupted(after: float) -> None:
        task = asyncio.create_task(bench.runra.create_sandbox(image=bench.image))
        await asyncio.sleep(after)
        task.cancel()
        for outcome in await asyncio.gather(task, return_exceptions=True):
            if isinstance(outcome, Sandbox):
                await outcome.terminate()

    for after in (0.0, 0.005, 0.05, 0.2):
        bench.run(interrupted(after))
    deadline = time.monotonic() + 15
    while bench.alive() != before:
        assert time.monotonic() < deadline, f"left behind: {bench.alive() - before}"


def test_an_image_there_is_none_of(bench: Bench) -> None:
    before = bench.alive()
    error = refused(lambda: bench.run(bench.runra.create_sandbox(image="127.0.0.1:1/runra/no-such-image")))
    # A registry that should know, and cannot be reached, is not the caller's mistake.
    assert error.code in ("INVALID_REQUEST", "INTERNAL_ERROR", "NETWORK_ERROR"), error
    assert bench.alive() == before


def test_another_caller_takes_it_up(bench: Bench) -> None:
    options: Any = {"metadata": {"mark": "kept"}} if "metadata" in bench.can else {}
    first = bench.another()
    sandbox = bench.run(first.create_sandbox(image=bench.image, **options))
    first.keep_sandbox(sandbox)
    bench.run(sandbox.files.write("kept.txt", "still here"))
    bench.run(first.dispose())
    bench.run(first.dispose())  # twice is fine
    second = bench.another()
    found = bench.run(second.get_sandbox(sandbox.id))
    assert found is not None
    assert bench.run(found.files.read("kept.txt")) == "still here"
    assert found.metadata == options.get("metadata", {})
    bench.run(found.terminate())
    bench.run(second.dispose())


def test_dispose_ends_what_was_made(bench: Bench) -> None:
    runra = bench.another()
    sandbox = bench.run(runra.create_sandbox(image=bench.image))
    bench.run(runra.dispose())
    assert sandbox.id not in bench.alive()


# --- commands ----------------------------------------------------------------------------------------------------


def test_output_and_exit_code(bench: Bench, sandbox: Sandbox) -> None:
    result = bench.run(sandbox.exec("echo out; echo err >&2; exit 3"))
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 3)
    assert result.duration_ms >= 0
    assert bench.run(sandbox.exec("no-such-command-here")).exit_code == 127
    assert bench.run(sandbox.exec("kill -9 $$")).exit_code == 137


def test_a_list_goes_through_no_shell(bench: Bench, sandbox: Sandbox) -> None:
    assert bench.run(sandbox.exec(["echo", "$HOME", "a  b", "*", "'", ";", ""])).stdout == "$HOME a  b * ' ; \n"


def test_directory_and_environment(bench: Bench, sandbox: Sandbox) -> None:
    result = bench.run(sandbox.exec('pwd; echo "$A"', cwd="/tmp", env={"A": "b c\nd=ü"}))
    assert result.stdout == "/tmp\nb c\nd=ü\n"
    own = bench.create(env={"OF_ALL": "x y"})
    assert bench.run(own.exec('echo "$OF_ALL"; pwd')).stdout == f"x y\n{own.workdir}\n"
    bench.run(own.terminate())


def test_much_output_and_strange_bytes(bench: Bench, sandbox: Sandbox) -> None:
    result = bench.run(sandbox.exec("head -c 3000000 /dev/zero | tr '\\0' x"))
    assert len(result.stdout) == 3_000_000
    assert bench.run(sandbox.exec("i=0; while [ $i -lt 3000 ]; do printf 'ü'; i=$((i+1)); done")).stdout == "ü" * 3000
    assert bench.run(sandbox.exec(r"printf 'a\377b'")).stdout == "a\ufffdb"


def test_many_at_once(bench: Bench, sandbox: Sandbox) -> None:
    async def all() -> list[str]:
        return [one.stdout for one in await asyncio.gather(*(sandbox.exec(f"echo {n}") for n in range(8)))]

    assert bench.run(all()) == [f"{n}\n" for n in range(8)]


def test_a_timeout_kills_and_keeps_what_came(bench: Bench, sandbox: Sandbox) -> None:
    began = time.monotonic()
    command = "echo before; (sleep 2.5; touch /tmp/survived) & sleep 100"
    error = refused(lambda: bench.run(sandbox.exec(command, timeout_ms=1000)))
    assert error.code == "EXECUTION_TIMEOUT"
    assert error.details["stdout"] == "before\n"
    assert time.monotonic() - began < 30
    bench.run(asyncio.sleep(3))
    assert not bench.run(sandbox.files.exists("/tmp/survived"))


def test_a_cancelled_command_is_ended(bench: Bench, sandbox: Sandbox) -> None:
    async def interrupted() -> float:
        task = asyncio.create_task(sandbox.exec("touch /tmp/began; (sleep 2; touch /tmp/went-on) & sleep 50"))
        async with asyncio.timeout(20):
            while not await sandbox.files.exists("/tmp/began"):
                await asyncio.sleep(0.05)
        began = time.monotonic()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return time.monotonic() - began

    assert bench.run(interrupted()) < 15
    bench.run(asyncio.sleep(2.5))
    assert not bench.run(sandbox.files.exists("/tmp/went-on"))
    assert bench.run(sandbox.exec("echo well")).stdout == "well\n"


def test_streaming(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("streaming")
    seen: list[tuple[str, str, float]] = []
    began = time.monotonic()
    result = bench.run(
        sandbox.exec(
            "echo one; echo two >&2; sleep 1; printf three",
            on_stdout=lambda line: seen.append(("out", line, time.monotonic() - began)),
            on_stderr=lambda line: seen.append(("err", line, time.monotonic() - began)),
        )
    )
    assert sorted((stream, line) for stream, line, _ in seen) == [("err", "two"), ("out", "one"), ("out", "three")]
    assert result.stdout == "one\nthree"
    first, last = min(at for *_, at in seen), max(at for *_, at in seen)
    assert last - first > 0.8, "the first line came only with the last"


def test_output_is_told_to_who_asks_for_it(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("streaming")
    pieces: list[Event] = []

    async def ask() -> Callable[[], None]:
        return bench.runra.on("exec.streamed", pieces.append)

    off = bench.run(ask())

    def told(stream: str, command: str) -> str:
        mine = [one.data for one in pieces if one.data["command"] == command and one.data["stream"] == stream]
        return "".join(data["data"] for data in sorted(mine, key=lambda data: data["offset"]))

    command = "echo one; echo two >&2; sleep 0.3; printf ü"
    bench.run(sandbox.exec(command))
    bench.until(lambda: (told("stdout", command), told("stderr", command)) == ("one\nü", "two\n"))
    if "background" in bench.can:

        async def left() -> int:
            process = await sandbox.exec("echo in the background", background=True)
            await process.wait()
            return process.pid

        pid = bench.run(left())
        bench.until(lambda: told("stdout", "echo in the background") == "in the background\n")
        assert pieces[-1].data["pid"] == pid

    async def unheard() -> None:
        off()
        await sandbox.exec("echo unheard")

    asked = len(pieces)
    bench.run(unheard())
    bench.until(lambda: "exec.completed" in bench.of(sandbox))
    assert len(pieces) == asked
    assert "exec.streamed" not in bench.of(sandbox), "it comes only to who names it"


def test_another_user(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("user")
    own = bench.run(sandbox.exec("id -u")).stdout.strip()
    listed = bench.run(sandbox.exec("cut -d: -f1,3 /etc/passwd", check=True)).stdout.split()
    others = [line.split(":") for line in listed if line.split(":")[1] not in ("0", own)]
    if not others:
        pytest.skip("the image has no other user")
    name, number = others[0]
    assert bench.run(sandbox.exec("id -u", user=name)).stdout.strip() == number
    assert bench.run(sandbox.exec("touch /etc/not-mine", user=name)).exit_code != 0
    assert bench.run(sandbox.exec("id -u")).stdout.strip() == own


def test_a_terminal(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("pty")

    async def talk() -> None:
        async with await sandbox.terminal(cols=100, rows=30, cwd="/tmp") as terminal:
            shown = b""

            async def until(text: str, timeout_ms: int = 20_000) -> None:
                nonlocal shown
                while text.encode() not in shown:
                    piece = await terminal.recv(timeout_ms)
                    assert piece is not None, shown
                    shown += piece
                shown = shown.partition(text.encode())[2]

            await terminal.send("stty size; echo $((6*7))-$TERM-$PWD\n")
            await until("30 100")
            await until("42-xterm-256color-/tmp")
            await terminal.resize(40, 120)
            await terminal.send(b"stty size; printf '\\303\\274\\n'\n")
            await until("40 120")
            await until("ü")
            with pytest.raises(RunraError) as caught:
                await until("what never comes", 1000)
            assert (caught.value.code, caught.value.details["reason"]) == ("NETWORK_ERROR", "timeout")
            assert terminal.exit is None
            await terminal.send("exit 3\n")
            assert (await terminal.wait(20_000)).exit_code == 3
            assert await terminal.recv() is None

    bench.run(talk())

    async def command() -> tuple[bytes, int | None]:
        async with await sandbox.terminal(command="test -t 0 && echo on a terminal; exit 5") as terminal:
            shown = b"".join([piece async for piece in terminal])
            assert terminal.exit is not None
            return shown, terminal.exit.exit_code

    shown, code = bench.run(command())
    assert b"on a terminal" in shown
    assert code == 5
    assert refused(lambda: bench.run(sandbox.terminal(cols=0))).code == "INVALID_REQUEST"


def test_stdin(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("stdin")
    assert bench.run(sandbox.exec("cat", stdin="text ü\n")).stdout == "text ü\n"
    assert bench.run(sandbox.exec("wc -c", stdin="x" * 300_000)).stdout.strip() == "300000"
    assert bench.run(sandbox.exec("exit 4", stdin="x" * 300_000)).exit_code == 4  # it need not read it


def test_a_process_in_the_background(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("background", "stdin")
    last = '[ "$line" = end ] && break'

    async def talk() -> tuple[str, int | None]:
        process = await sandbox.exec(f"while read line; do {last}; echo got $line; done; exit 5", background=True)
        assert process.pid > 0
        await process.send_stdin("a\n")
        await process.send_stdin(b"b\nend\n")
        output = b"".join([chunk.data async for chunk in process.output()])
        return output.decode(), (await process.wait()).exit_code

    assert bench.run(talk()) == ("got a\ngot b\n", 5)


def test_the_stdin_of_a_background_process_ends(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("background", "stdin", "stdin_end")

    async def count() -> str:
        process = await sandbox.exec("wc -c", background=True)
        await process.send_stdin("x" * 100_000)
        await process.close_stdin()
        return (await process.wait()).stdout.strip()

    assert bench.run(count()) == "100000"


def test_a_background_process_is_killed(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("background")

    async def kill() -> int | None:
        process = await sandbox.exec("sleep 500", background=True)
        await process.kill()
        result = await process.wait()
        await process.kill()  # killing what has ended is fine
        return result.exit_code

    assert bench.run(kill()) == 137


def test_a_background_process_needs_no_reader(bench: Bench, sandbox: Sandbox) -> None:
    bench.needs("background")

    async def unread() -> Any:
        process = await sandbox.exec("head -c 3000000 /dev/zero | tr '\\0' x; exit 6", background=True)
        return await process.wait()

    assert bench.run(unread()).exit_code == 6


# --- files -------------------------------------------------------------------------------------------------------


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


# --- abilities ---------------------------------------------------------------------------------------------------

#: A web server of what an image may have, on loopback.
SERVER: Final = """
mkdir -p /tmp/served && cd /tmp/served && echo from inside > index.html
if command -v python3 >/dev/null; then exec python3 -m http.server 8765 --bind 127.0.0.1; fi
exec busybox httpd -f -p 127.0.0.1:8765
"""


def test_a_port_leads_inside(bench: Bench, runra_reach: Callable[[str], bytes]) -> None:
    bench.needs("ports", "background")
    sandbox = bench.create()
    ready = bench.run(sandbox.exec("command -v python3 || command -v busybox")).exit_code == 0
    if not ready:
        pytest.skip("the image has no web server: neither python3 nor busybox")
    bench.run(sandbox.exec(SERVER, background=True))
    exposed = bench.run(sandbox.expose_port(8765))
    assert exposed.port == 8765
    assert "8765" in exposed.url
    assert [one.port for one in bench.run(sandbox.get_ports())] == [8765]
    deadline = time.monotonic() + 20
    while (page := _page(runra_reach, exposed.url)) != b"from inside\n":
        assert time.monotonic() < deadline, page
        bench.run(asyncio.sleep(0.1))
    bench.until(lambda: "port.exposed" in bench.of(sandbox))
    if "ports" not in bench.can.notes:  # where one can be closed
        bench.run(sandbox.close_port(8765))
        assert bench.run(sandbox.get_ports()) == []
        assert _page(runra_reach, exposed.url) != b"from inside\n"
        bench.until(lambda: "port.closed" in bench.of(sandbox))
    else:
        assert refused(lambda: bench.run(sandbox.close_port(8765))).code == "INVALID_CONFIG"
    bench.run(sandbox.terminate())


def _page(reach: Callable[[str], bytes], url: str) -> bytes:
    try:
        return reach(url)
    except OSError as error:
        return str(error).encode()


def test_a_volume_outlives_its_sandbox(bench: Bench, runra_volume: str) -> None:
    bench.needs("volumes")
    first = bench.create(volumes=[{"name": runra_volume, "path": "/kept"}])
    bench.run(first.exec("echo kept > /kept/file", check=True))
    bench.run(first.terminate())
    second = bench.create(volumes=[{"name": runra_volume, "path": "/kept", "readOnly": True}])
    assert bench.run(second.exec("cat /kept/file")).stdout == "kept\n"
    assert bench.run(second.exec("touch /kept/more")).exit_code != 0
    bench.run(second.terminate())


def test_what_it_uses_is_told(bench: Bench) -> None:
    bench.needs("resources")
    if "events" in bench.can:
        pytest.skip("the provider's server tells it, in its own time")
    runra = bench.another()
    runra._session.resources.every_s = 0.1
    told: list[Event] = []
    runra.on("resource.*", told.append)
    sandbox = bench.run(runra.create_sandbox(image=bench.image))
    bench.until(lambda: "resource.memory" in {event.type for event in told})
    memory = next(event for event in told if event.type == "resource.memory")
    assert memory.sandbox_id == sandbox.id
    assert memory.data["memoryBytes"] > 0
    bench.run(sandbox.terminate())
    bench.run(runra.dispose())


def test_pause_and_resume(bench: Bench) -> None:
    bench.needs("pause")
    sandbox = bench.create()
    bench.run(sandbox.exec("(while :; do date +%s%N; sleep 0.1; done) > /tmp/ticks 2>/dev/null &"))
    bench.run(sandbox.pause())
    bench.run(sandbox.pause())  # pausing a paused one is fine
    assert bench.run(sandbox.refresh()).state == "paused"
    error = refused(lambda: bench.run(sandbox.exec("true")))
    assert error.code == "INVALID_STATE"
    bench.run(sandbox.resume())
    bench.run(sandbox.resume())
    assert bench.run(sandbox.refresh()).state == "running"
    before = bench.run(sandbox.exec("wc -l < /tmp/ticks")).stdout
    bench.run(asyncio.sleep(0.5))
    assert int(bench.run(sandbox.exec("wc -l < /tmp/ticks")).stdout) > int(before), "its processes did not go on"
    bench.run(sandbox.terminate())
    bench.until(lambda: "sandbox.terminated" in bench.of(sandbox))
    life = [type for type in bench.of(sandbox) if type.startswith("sandbox.")]
    expected = ["created", "started", "paused", "resumed", "terminated"]
    assert life == [f"sandbox.{name}" for name in expected]


def test_a_paused_one_is_ended(bench: Bench) -> None:
    bench.needs("pause")
    sandbox = bench.create()
    bench.run(sandbox.pause())
    bench.run(sandbox.terminate())
    assert sandbox.id not in bench.alive()


def test_auto_resume(bench: Bench) -> None:
    bench.needs("pause", "auto_resume")
    sandbox = bench.create(auto_resume=True)
    bench.run(sandbox.pause())
    assert bench.run(sandbox.exec("echo awake")).stdout == "awake\n"
    bench.run(sandbox.terminate())


def test_another_network_policy_while_it_runs(bench: Bench) -> None:
    bench.needs("network_change")
    sandbox = bench.create()
    bench.run(sandbox.set_network(Network(egress=Egress(default="deny"))))
    said = "if exec 3<>/dev/tcp/192.0.2.1/80; then echo open; else echo closed; fi"
    assert "closed" in bench.run(sandbox.exec(["/bin/bash", "-c", f"timeout 5 bash -c '{said}' || echo closed"])).stdout
    if "secrets" not in bench.can:
        before = bench.of(sandbox)
        error = refused(lambda: bench.run(sandbox.set_network(Network.model_validate({"secrets": [SECRET]}))))
        assert (error.code, error.details["abilities"]) == ("INVALID_CONFIG", ["secrets"])
        assert bench.of(sandbox) == before
    bench.run(sandbox.terminate())


def test_a_snapshot_makes_others(bench: Bench) -> None:
    bench.needs("snapshots")
    sandbox = bench.create()
    bench.run(sandbox.files.write("kept.txt", "then"))
    taken = bench.run(sandbox.snapshot())
    bench.run(sandbox.files.write("kept.txt", "now"))
    other = bench.run(bench.runra.create_sandbox(image=f"snapshot:{taken.id}"))
    assert bench.run(other.files.read("kept.txt")) == "then"
    for one in (other, sandbox):
        bench.run(one.terminate())


def test_metadata(bench: Bench) -> None:
    bench.needs("metadata")
    sandbox = bench.create(metadata={"a": "1", "with": "sp ace & ü"})
    found = bench.run(bench.runra.get_sandbox(sandbox.id))
    assert found is not None
    assert found.metadata == {"a": "1", "with": "sp ace & ü"}
    if "metadata_filter" in bench.can:
        other = bench.create(metadata={"a": "2"})
        listed = bench.run(bench.runra.list_sandboxes(metadata={"a": "1"}))
        assert [one.id for one in listed if one.state != "terminated"] == [sandbox.id]
        bench.run(other.terminate())
    bench.run(sandbox.terminate())


def test_a_lifetime_ends_it(bench: Bench) -> None:
    bench.needs("timeout")
    sandbox = bench.create(timeout_ms=2000)
    deadline = time.monotonic() + 20
    while sandbox.id in bench.alive():
        assert time.monotonic() < deadline, "it outlived its time"
        bench.run(asyncio.sleep(0.2))


def test_an_idle_one_is_paused_but_not_one_that_works(bench: Bench) -> None:
    bench.needs("idle_timeout", "pause")
    sandbox = bench.create(idle_timeout_ms=1000)
    assert bench.run(sandbox.exec("sleep 2.5; echo done")).stdout == "done\n"
    assert "sandbox.paused" not in bench.of(sandbox)
    bench.until(lambda: "sandbox.paused" in bench.of(sandbox))  # asking would be activity
    (paused,) = (event for event in bench.events if (event.sandbox_id, event.type) == (sandbox.id, "sandbox.paused"))
    assert paused.data["reason"] == "idle"
    assert 2500 <= paused.data["runtimeDurationMs"] < 15_000
    assert bench.run(sandbox.refresh()).state == "paused"
    bench.run(sandbox.terminate())


def test_limits_are_reported(bench: Bench) -> None:
    bench.needs("cpu_limit", "memory_limit")
    sandbox = bench.create(resources={"cpu": 4, "memory_mb": 3072})
    assert (sandbox.resources["cpu"], sandbox.resources["memoryMb"]) == (4, 3072)
    bench.run(sandbox.terminate())


@pytest.mark.parametrize(
    ("ability", "options"),
    [
        ("cpu_limit", {"resources": {"cpu": 4}}),
        ("disk_limit", {"resources": {"disk_mb": 6000}}),
        ("timeout", {"timeout_ms": 60_000}),
        ("idle_timeout", {"idle_timeout_ms": 60_000}),
        ("auto_resume", {"auto_resume": True}),
        ("isolation", {"isolation": "gvisor"}),
        ("metadata", {"metadata": {"a": "b"}}),
        ("network_deny", {"network": {"egress": {"default": "deny"}}}),
        ("network_allow_list", {"network": {"egress": {"allow": ["example.com"]}}}),
        ("volumes", {"volumes": [{"name": "kept", "path": "/kept"}]}),
        ("secrets", {"network": {"secrets": [SECRET]}}),
    ],
)
def test_what_it_does_not_declare_is_refused(bench: Bench, ability: Ability, options: dict[str, Any]) -> None:
    if ability in bench.can:
        pytest.skip(f"the provider declares {ability}")
    before = bench.alive()
    error = refused(lambda: bench.create(**options))
    assert error.code == "INVALID_CONFIG"
    assert (error.details["provider"], error.details["abilities"]) == (bench.runra.provider.id, [ability])
    assert bench.alive() == before


# --- events ------------------------------------------------------------------------------------------------------


def test_events_come_once_and_in_order(bench: Bench) -> None:
    sandbox = bench.create()
    bench.run(sandbox.exec("exit 2"))
    bench.run(sandbox.files.write("/tmp/e", "x"))
    bench.run(sandbox.files.delete("/tmp/e"))
    bench.run(sandbox.terminate())
    bench.until(lambda: "sandbox.terminated" in bench.of(sandbox))
    assert bench.of(sandbox) == [
        "sandbox.created",
        "sandbox.started",
        "exec.started",
        "exec.completed",
        "file.created",
        "file.deleted",
        "sandbox.terminated",
    ]
    events = [event for event in bench.events if event.sandbox_id == sandbox.id]
    assert all(event.run_id and event.trace_id for event in events)
    assert events[3].data["exitCode"] == 2
    assert events[-1].data["reason"] == "user"
