"""Write a small seed corpus: `seeds.py FOLDER` makes FOLDER/frames, FOLDER/tar, FOLDER/relay and FOLDER/link."""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from runra.node.agent.frames import Ask, Field, Tell, pack, pack_credit, pack_fields, pack_output
from runra.runtime.relay_lines import say


def asks() -> list[bytes]:
    start = [
        (Field.COMMAND, "echo hello"),
        (Field.ENV, "A=b"),
        (Field.ENV, "C=d"),
        (Field.CWD, "/"),
        (Field.WINDOW, 4096),
    ]
    argv = [(Field.ARG, word) for word in ("python3", "-c", "print(1)")]
    work = [(Field.OP, 3), (Field.PATH, "/workspace/x"), (Field.FLAGS, 2), (Field.MODE, 0o644), (Field.USER, "user")]
    return [
        pack(Ask.HELLO, 0, pack_fields([(Field.VERSION, 1)])),
        pack(Ask.EXEC, 1, pack_fields(start)),
        pack(Ask.EXEC, 2, pack_fields([*argv, (Field.ROWS, 24), (Field.COLS, 80), (Field.TAG, "t")])),
        pack(Ask.FILE, 3, pack_fields(work)),
        pack(Ask.ATTACH, 4, pack_fields([(Field.PID, 5), (Field.OFFSET, 1 << 40)])),
        pack(Ask.PART, 6),
        pack(Ask.HELLO, 0, pack_fields([(Field.VERSION, 1), (Field.RESUME, 1)])),
        pack(Ask.CONNECT, 5, pack_fields([(Field.PORT, 8000), (Field.WINDOW, 1 << 19)])),
        pack_credit(1, 4096),
        pack(Ask.DETACH, 1),
    ]


def tells() -> list[bytes]:
    started = [(Field.PID, 5), (Field.STARTED_AT, 1), (Field.REUSED, 0), (Field.OFFSET, 0), (Field.TITLE, "x")]
    exit = [(Field.CODE, 0), (Field.SIGNAL, 9), (Field.TIMED_OUT, 0), (Field.DURATION_MS, 1), (Field.ENDED_AT, 1)]
    return [
        pack(Tell.HELLO, 0, pack_fields([(Field.VERSION, 1), (Field.PID, 1)])),
        pack(Tell.STARTED, 1, pack_fields(started))
        + pack_output(1, 0, b"hello\n")
        + pack(Tell.EXIT, 1, pack_fields(exit)),
        pack(Tell.STATUS, 2, pack_fields([*started, *exit])) + pack(Tell.DONE, 2),
        pack(Tell.ERROR, 3, pack_fields([(Field.ERRNO, 2), (Field.STAGE, 5), (Field.MESSAGE, "no")])),
        pack_output(4, 1 << 40, b"x" * 100, stderr=True) + pack(Tell.CREDIT, 4, b"\0\1\0\0"),
    ]


def archives() -> list[bytes]:
    made = []
    for form in (tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
            for name, kind, link in (
                ("d", tarfile.DIRTYPE, ""),
                ("d/f", tarfile.REGTYPE, ""),
                ("d/l", tarfile.SYMTYPE, "../d"),
                ("h", tarfile.LNKTYPE, "d/f"),
                ("n" * 98 + "/" + "m" * 60, tarfile.REGTYPE, ""),
                ("../up" if form != tarfile.USTAR_FORMAT else "/abs", tarfile.REGTYPE, ""),
            ):
                info = tarfile.TarInfo(name)
                info.type, info.linkname = kind, link
                info.size = 5 if kind == tarfile.REGTYPE else 0
                tar.addfile(info, io.BytesIO(b"hello"))
        made.append(buffer.getvalue()[:6144])
    return [*made, gzip.compress(made[0])[:512], made[1][:1536] + bytes(1024)]


def relay_lines() -> list[bytes]:
    lines = [
        say("d", 1, b"hello"),
        say("d", 7, b"he"),
        say("c", 12, 65536),
        say("a", 0, 1 << 40),
        say("e", 3),
        say("q"),
    ]
    return [b"%d%b" % (seq, line[:-1]) for seq, line in enumerate(lines, 1)]


def main() -> None:
    for name, seeds in (("frames", asks()), ("tar", archives()), ("relay", relay_lines()), ("link", tells())):
        folder = Path(sys.argv[1], name)
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (folder / f"seed{number}").write_bytes(seed)


if __name__ == "__main__":
    main()
