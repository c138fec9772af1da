"""The way to a socket of this machine, on every built-in provider, from sandboxes that have no network."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runra.contract.network import Egress, Network
from runra.errors import RunraError
from runra.runtime.capabilities import Capabilities
from runra.runtime.forward import forwarded
from runra.runtime.sandbox import Sandbox
from runra.runtime.testing.bench import Bench, bench, sandbox

__all__ = ["bench", "sandbox"]

#: Larger than what any provider keeps of a process's output unread.
BODY = bytes(range(256)) * (3 << 12)


@asynccontextmanager
async def served() -> AsyncIterator[Path]:
    """BODY over HTTP/1.0 at a Unix socket; to what is posted, its length."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.split(b"content-length:")[1].split()[0]) if b"content-length:" in head else 0
        posted = await reader.readexactly(length)
        answer = b"%d" % len(posted) if length else BODY
        writer.write(b"HTTP/1.0 200 OK\r\ncontent-length: %d\r\n\r\n" % len(answer) + answer)
        await writer.drain()
        writer.close()

    with tempfile.TemporaryDirectory(prefix="rf-") as folder:
        server = await asyncio.start_unix_server(serve, Path(folder, "s"))
        try:
            yield Path(folder, "s")
        finally:
            server.close()


#: With curl, or by hand with busybox, whose wget needs a resolver: what comes, five at once, and what goes.
FETCH = """
get() {
  if command -v curl >/dev/null; then curl -sS --max-time 50 "http://127.0.0.1:$1"
  else printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc 127.0.0.1 "$1" | tail -c "$2"; fi
}
for n in 1 2 3 4 5; do get "$1" "$2" | sha256sum & done; wait
"""
SEND = """
head -c 700000 /dev/zero > /tmp/zeros
if command -v curl >/dev/null; then exec curl -sS --max-time 50 --data-binary @/tmp/zeros "http://127.0.0.1:$1"; fi
{ printf 'POST / HTTP/1.0\\r\\nContent-Length: 700000\\r\\n\\r\\n'; cat /tmp/zeros; } | nc 127.0.0.1 "$1" | tail -c 6
"""


def test_a_socket_of_this_machine_is_reached_from_inside(bench: Bench) -> None:
    bench.needs("background", "stdin")
    denied = Network(egress=Egress(default="deny")) if "network_deny" in bench.can else None

    async def work() -> None:
        made = await bench.runra.create_sandbox(image=bench.image, **({"network": denied} if denied else {}))
        async with made, served() as target:
            async with forwarded(made, target) as forward:
                fetched = await made.exec(["/bin/sh", "-c", FETCH, "sh", f"{forward.port}", f"{len(BODY)}"])
                expected = hashlib.sha256(BODY).hexdigest()
                assert [line.split()[0] for line in fetched.stdout.splitlines()] == [expected] * 5, fetched.stderr
                sent = await made.exec(["/bin/sh", "-c", SEND, "sh", f"{forward.port}"])
                assert sent.stdout == "700000", sent.stderr
                assert not forward.lost.done()
            look = "ls /tmp /var/tmp 2>/dev/null; grep -l '^Name:.relay$' /proc/[0-9]*/status 2>/dev/null; true"
            left = (await made.exec(look)).stdout
            assert "runra-" not in left
            assert "/proc/" not in left

    bench.run(work())


def test_it_is_lost_with_its_sandbox(bench: Bench) -> None:
    bench.needs("background", "stdin")

    async def work() -> None:
        made = await bench.runra.create_sandbox(image=bench.image)
        async with made, served() as target, forwarded(made, target) as forward:
            await made.terminate()
            assert isinstance(await forward.lost, RunraError)

    bench.run(work())


def test_a_provider_that_cannot_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch, sandbox: Sandbox) -> None:
    monkeypatch.setattr(bench.runra.provider, "capabilities", Capabilities.of("stdin"))

    async def work() -> None:
        async with forwarded(sandbox, Path("/nonexistent")):
            pass

    with pytest.raises(RunraError) as caught:
        bench.run(work())
    assert (caught.value.code, caught.value.details["abilities"]) == ("INVALID_CONFIG", ["background"])
    assert caught.value.details["provider"] in caught.value.message
