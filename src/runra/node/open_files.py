"""Open files of a whole sandbox: kernel memory, charged to it like any other, as long as memory is what ends first.

Each open file costs the sandbox that opened it at least `_FILE_BYTES` of its memory limit. But a kernel also has a
table of all open files (`fs.file-max`), by default a tenth of what memory could hold: so one sandbox could fill it, and
nobody but root could open anything any more. A server raises it, as systemd does, for the same reason.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

_FILE_MAX: Final = Path("/proc/sys/fs/file-max")
#: Beyond every machine's memory, and the most the kernel takes.
_MOST: Final = (1 << 63) - 1
#: The least an open file takes: `struct file` alone, of the smallest kernel in use.
_FILE_BYTES: Final = 184


def table() -> int:
    """The most files all of this machine may have open."""
    return int(_FILE_MAX.read_text())


def uncounted() -> bool:
    """Whether this kernel was told to charge its own memory to nobody."""
    words = Path("/proc/cmdline").read_text().split()
    return any("nokmem" in word.partition("=")[2].split(",") for word in words if word.startswith("cgroup.memory="))


def beyond_memory() -> bool:
    """Whether memory ends before the table does, so that limits of memory are limits of open files."""
    total = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
    return not uncounted() and table() * _FILE_BYTES >= int(total.split()[1]) << 10


def may_raise() -> bool:
    """Whether we can make the table larger: root can, but not in every container."""
    return os.geteuid() == 0 and os.access(_FILE_MAX, os.W_OK)


def raise_table() -> None:
    """Make the table larger than memory where it is not, and it can be; it stays so."""
    if may_raise() and not beyond_memory():
        log.info("fs.file-max raised from %d: memory bounds open files now", table())
        _FILE_MAX.write_text(str(_MOST))
