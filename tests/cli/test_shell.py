"""`runra shell` at a real terminal: a pseudo-terminal stands in for the person's."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.cli.conftest import Cli


class Person:
    """Someone at a terminal: types, reads, resizes."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self.master = master
        self.process = process
        self.seen = b""

    def types(self, text: str) -> None:
        os.write(self.master, text.encode())

    def reads(self, wanted: str, timeout: float = 20) -> str:
        """Everything up to and with `wanted`, which is taken away."""
        deadline = time.monotonic() + timeout
        while wanted.encode() not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"no {wanted!r} in {self.seen!r}"
            self._takes(left)
        text, _, self.seen = self.seen.partition(wanted.encode())
        return text.decode() + wanted

    def resizes(self, rows: int, cols: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))

    def waits(self) -> int:
        """The exit code; what is still printed is read meanwhile, as a terminal does."""
        deadline = time.monotonic() + 20
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.seen
            self._takes(0.05)
        while self._takes(0):
            pass
        return self.process.returncode

    def _takes(self, seconds: float) -> bool:
        if not select.select([self.master], [], [], seconds)[0]:
            return False
        self.seen += os.read(self.master, 65_536)
        return True


@contextmanager
def at_a_terminal(cli: Cli, *words: str) -> Iterator[Person]:
    master, slave = pty.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    before = termios.tcgetattr(slave)
    # setsid --ctty makes it the controlling terminal, so that the kernel tells of a new size.
    process = subprocess.Popen(
        ["setsid", "--ctty", *cli.command(*words)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=cli.env,
        cwd=cli.home,
        start_new_session=False,
    )
    try:
        yield Person(master, process)
        after = termios.tcgetattr(slave)
        assert after == before, "the terminal was not given back as it was"
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(slave)
        os.close(master)


def test_a_terminal_with_its_size_its_keys_and_its_exit_code(cli: Cli, sandbox: str) -> None:
    with at_a_terminal(cli, "shell", sandbox) as person:
        person.reads("# ")
        person.types("stty size; tty; echo got-$((6 * 7))\r")
        shown = person.reads("got-42")
        assert "30 100" in shown
        assert "/dev/pts/" in shown
        person.reads("# ")
        person.resizes(40, 120)
        person.types("sleep 0.3; stty size; echo resi''zed\r")
        assert "40 120" in person.reads("resized")
        person.reads("# ")
        # Ctrl-C goes to the sandbox, and ends nothing here.
        person.types("sleep 60\r")
        time.sleep(0.3)
        person.types("\x03")
        person.reads("# ")
        person.types("exit 7\r")
        assert person.waits() == 7


def test_a_command_in_a_terminal(cli: Cli, sandbox: str) -> None:
    with at_a_terminal(
        cli, "shell", sandbox, "--command", "id -un; pwd; test -t 0 && echo a tty", "-u", "user", "-w", "/usr"
    ) as person:
        shown = person.reads("a tty")
        assert "user" in shown
        assert "/usr" in shown
        assert person.waits() == 0


@pytest.mark.parametrize("deadly", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_terminal_back(cli: Cli, sandbox: str, deadly: signal.Signals) -> None:
    with at_a_terminal(cli, "shell", sandbox) as person:
        person.reads("# ")
        person.process.send_signal(deadly)
        assert person.waits() == 128 + deadly


def test_the_end_of_the_sandbox_gives_the_terminal_back(cli: Cli) -> None:
    one = cli.ok("create").strip()
    with at_a_terminal(cli, "shell", one) as person:
        person.reads("# ")
        cli.ok("rm", one)
        assert person.waits() == 125
        assert b"terminated" in person.seen


def test_without_a_terminal_it_says_so(cli: Cli, sandbox: str) -> None:
    ran = cli("shell", sandbox)
    assert ran.code == 2
    assert "runra exec" in ran.err


def test_tables_have_colours_and_bars_only_on_a_terminal(cli: Cli, sandbox: str) -> None:
    with at_a_terminal(cli, "ps") as person:
        assert person.waits() == 0
        assert sandbox.encode() in person.seen
        assert b"\x1b[" in person.seen
