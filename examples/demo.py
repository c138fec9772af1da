"""The main job, with real output: `make demo`, or `python examples/demo.py` where runra[server] is installed.

It starts a server of its own on embedded defaults (SQLite, image `host`), in a temporary folder and with a
configuration file of its own, so nothing of yours is touched; and it stops that server whatever happens.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runra import Runra, RunraError, Sandbox

PROGRAM = """\
import sys, time
for number in range(1, 6):
    print(f"line {number} of 5", flush=True)
    time.sleep(0.3)
print("and this one went to stderr", file=sys.stderr)
"""

COUNTER = "n=0; while true; do n=$((n+1)); echo $n > /tmp/count; sleep 0.02; done"

began = time.monotonic()


def say(text: str) -> None:
    """A line with the time since the start, so that one sees output arrive as it is made."""
    print(f"{time.monotonic() - began:6.2f} s  {text}", flush=True)


def main() -> None:
    with a_server() as client:
        demonstrate(client)


def demonstrate(client: Runra) -> None:
    sandbox = client.sandboxes.create(image="host", metadata={"made-by": "demo"})
    try:
        say(f"created {sandbox.id}: {sandbox.resources.cpu} cores, {sandbox.resources.memory_mb} MB")

        say("a program, its output line by line as it comes:")
        sandbox.files.write("/workspace/program.py", PROGRAM)
        result = sandbox.exec(
            "python3 program.py",
            on_stdout=lambda line: say(f"    stdout  {line}"),
            on_stderr=lambda line: say(f"    stderr  {line}"),
        )
        say(f"    exit code {result.exit_code} after {result.duration_ms} ms")

        sandbox.exec("mkdir -p notes && date -u +%F > notes/today.txt")
        say(f"a file it wrote, read from here: {sandbox.files.read('/workspace/notes/today.txt').strip()}")
        say(f"who it thinks it is: {sandbox.exec('id -un; hostname').stdout.split()}")

        say("a process that counts, and a pause:")
        sandbox.exec(COUNTER, background=True)
        time.sleep(0.5)
        before = count(sandbox)
        sandbox.pause()
        say(f"    counted to {before}; paused, state {sandbox.state}")
        time.sleep(1.0)
        sandbox.resume()
        say(f"    resumed a second later: still at {count(sandbox)}")
        time.sleep(0.5)
        say(f"    and it counts on: {count(sandbox)}")

        for one in client.sandboxes.list(state="running"):
            say(f"listed: {one.id}  {one.state}  {one.image}  {one.metadata}")
    finally:
        sandbox.terminate()
    say(f"terminated: {sandbox.state}, reason {sandbox.termination_reason}")


def count(sandbox: Sandbox) -> int:
    """How far it has counted. The file may be caught in the moment between emptied and written."""
    while not (text := sandbox.files.read("/tmp/count").strip()):
        time.sleep(0.005)
    return int(text)


@contextmanager
def a_server() -> Iterator[Runra]:
    """A server on a free port in a temporary folder, and a client of it."""
    with tempfile.TemporaryDirectory(prefix="runra-demo-") as folder:
        config, log = Path(folder, "config.json"), Path(folder, "server.log")
        os.environ["RUNRA_CONFIG_PATH"] = str(config)
        for name in ("RUNRA_API_KEY", "RUNRA_API_URL"):
            os.environ.pop(name, None)
        command = [sys.executable, "-m", "runra.cli", "serve", "--port", "0", "--data-dir", f"{folder}/data"]
        with log.open("wb") as output:
            server = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            with ready(server, config, log) as client:
                say(f"server {server.pid} at {client.api_url}")
                try:
                    yield client
                finally:
                    # A server that stops leaves its sandboxes alive; this one's folder goes, so they go as well.
                    for one in client.sandboxes.iter():
                        one.terminate()
        finally:
            server.terminate()
            server.wait(timeout=30)
            say("server stopped")


def ready(server: subprocess.Popen[bytes], config: Path, log: Path) -> Runra:
    """A client, as soon as the server answers."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        if config.exists():
            try:
                client = Runra()
                client.sandboxes.list()
                return client
            except RunraError as error:
                if error.code != "NETWORK_ERROR":
                    raise
        time.sleep(0.05)
    sys.exit(f"the server did not start. It said:\n{log.read_text()}\n`runra doctor` examines this machine.")


if __name__ == "__main__":
    main()
