"""Unpacks one layer. Runs alone behind a wall (`unpack.py`), as nobody, with the target folder for its only "/".

A layer is hostile input. This program therefore needs no trust: it sees the compressed bytes on stdin, the folder,
and the Python it runs on; it has no network, no other files, no ids but the sandbox's, and a memory limit. What it
says of its work is a claim. It is a file of its own without imports from Runra, since none of Runra is shown to it.

What it makes is an overlay's layer: a file `.wh.NAME` (OCI image specification, "Whiteouts") becomes the character
device 0/0 `NAME`, which Linux lets anybody make since 5.8, and `.wh..wh..opq` the attribute `user.overlay.opaque`,
which overlays mounted with `userxattr` read (bwrap mounts them so).
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import hashlib
import json
import lzma
import os
import resource
import shutil
import stat
import sys
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO, cast

_CHUNK = 1 << 20
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_OPAQUE_ATTRIBUTE = "user.overlay.opaque"
#: Of a folder that has no entry of its own: what a lower layer says of it counts (`seams.py`).
_IMPLIED_ATTRIBUTE = "user.overlay.runra.implied"
_XATTR = "SCHILY.xattr."
#: Ids a sandbox has; others become nobody's.
_IDS, _NOBODY = 65_536, 65_534
#: Bytes of memory. Where there is no cgroup (a server without root) nothing else bounds it; a zstd window may be 128 MB
#: (RFC 8878 asks for 8), and a tar's headers are read whole.
_MEMORY = 1 << 30
#: How many bytes may be written between two looks at what the disk has left.
_LOOK_EVERY = 64 << 20


class Refused(Exception):
    """The layer is not one to be unpacked; the text says why."""


class Bounded:
    """The uncompressed bytes, forwards only: counted, bounded, and hashed into the layer's diff id."""

    def __init__(self, raw: BinaryIO, most: int) -> None:
        self._raw = raw
        self._most = most
        self._at = 0
        self._hash = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """`size` bytes, or as many as are left."""
        parts: list[bytes] = []
        while size > 0 and (part := self._raw.read(min(size, _CHUNK))):
            self._at += len(part)
            if self._at > self._most:
                raise Refused(f"unpacked it is larger than the {self._most >> 20} MB allowed here")
            self._hash.update(part)
            parts.append(part)
            size -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> None:
        """Forwards; tarfile asks for nothing else."""
        if position < self._at:
            raise Refused("it is no stream: an entry points backwards")
        while self._at < position and self.read(min(_CHUNK, position - self._at)):
            continue

    def finish(self) -> str:
        """Read what is left, and give the digest of all."""
        while self.read(_CHUNK):
            continue
        return f"sha256:{self._hash.hexdigest()}"


class Entry(tarfile.TarInfo):
    """An entry of a tar. A broken header is an error: tarfile would take it for the end and say nothing."""

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.EOFHeaderError, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise Refused(f"it is damaged at byte {tarfile_.fileobj.tell()}: {error}") from None


def decompressed(raw: BinaryIO) -> BinaryIO:
    """By what the bytes are, whatever the media type said."""
    start = raw.read(6)
    raw.seek(0)
    if start.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw, mode="rb"))
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        import zstandard

        return cast(BinaryIO, zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True))
    if start.startswith(b"BZh"):
        return cast(BinaryIO, bz2.BZ2File(raw))
    if start.startswith(b"\xfd7zXZ\0"):
        return cast(BinaryIO, lzma.LZMAFile(raw))
    return raw


def parts_of(name: str) -> list[str]:
    """A name's components below the root. `..` is refused: nobody honest writes it into a layer."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Refused(f"the name {name[:200]!r} leads upwards")
    return parts


class Tree:
    """The folder being filled; the process's root. Links in it lead nowhere else, since there is nothing else."""

    def __init__(self, *, own: bool, reserve: int, most_entries: int, plain: bool) -> None:
        self._own = own
        self._reserve = reserve
        self._most = most_entries
        self._plain = plain
        self._unseen = _LOOK_EVERY
        self._times: dict[str, int] = {}
        self._links: dict[str, str] = {}
        self.counts = {"implied": 0, "entries": 0, "bytes": 0, "devices": 0, "attributes": 0, "ids": 0}

    def add(self, entry: tarfile.TarInfo, data: Bounded) -> None:
        self._count()
        parts = parts_of(entry.name)
        if not parts:
            if entry.isdir():
                self._dress(entry, "/")
            return
        parent = self._parent(parts[:-1])
        path = f"{parent}/{parts[-1]}"
        if self._plain:
            self._add_plain(entry, path, data)
        elif parts[-1] == _OPAQUE:
            self._hide_below(parent or "/")
        elif parts[-1].startswith(_WHITEOUT + _WHITEOUT):
            return  # other notes of AUFS, which mean nothing here (OCI image specification, "Whiteouts")
        elif parts[-1].startswith(_WHITEOUT):
            self._whiteout(parent, parts[-1].removeprefix(_WHITEOUT))
        else:
            self._add(entry, path, data)

    def _count(self) -> None:
        self.counts["entries"] += 1
        if self.counts["entries"] > self._most:
            raise Refused(f"it has more than the {self._most} entries allowed here")
        self._spend(4096)

    def _parent(self, parts: list[str]) -> str:
        path = ""
        for part in parts:
            path += f"/{part}"
            try:
                kind = os.stat(path).st_mode  # a link to a folder of this layer is one
            except FileNotFoundError:
                kind = 0
            if not stat.S_ISDIR(kind):
                self._count()  # a name may be a thousand folders
                hidden = self._clear(path)
                os.mkdir(path, 0o755)
                if hidden:
                    self._hide_below(path)
                elif not self._plain:
                    self._imply(path)
        return path

    def _imply(self, path: str) -> None:
        self.counts["implied"] += 1
        try:
            os.setxattr(path, _IMPLIED_ATTRIBUTE, b"y")
        except OSError as error:
            if error.errno != errno.ENOTSUP:  # a tmpfs before Linux 6.6: the folder is root's, with mode 0755
                raise

    def _say(self, path: str) -> None:
        """This layer says of the folder what it is."""
        with contextlib.suppress(OSError):
            os.removexattr(path, _IMPLIED_ATTRIBUTE)

    def _add(self, entry: tarfile.TarInfo, path: str, data: Bounded) -> None:
        if entry.isdir():
            if os.path.isdir(path) and not os.path.islink(path):
                self._say(path)
            else:
                hidden = self._clear(path)
                os.mkdir(path, 0o700)
                if hidden:
                    self._hide_below(path)
        elif entry.ischr() or entry.isblk():
            self.counts["devices"] += 1  # a sandbox has its own /dev, and nothing else is a device there
            return
        else:
            self._clear(path)
            if entry.isreg():
                self._file(entry, path, data)
                return
            if entry.islnk():
                self._link(entry, path)
                return
            if entry.issym():
                os.symlink(entry.linkname, path)
            elif entry.isfifo():
                os.mkfifo(path, 0o600)
            else:
                raise Refused(f"{entry.name[:200]!r} is of the unknown type {entry.type!r}")
        self._dress(entry, path)

    def _add_plain(self, entry: tarfile.TarInfo, path: str, data: Bounded) -> None:
        """An archive of images: files and folders only, with links resolved, for whoever reads it next."""
        if entry.isdir():
            os.makedirs(path, exist_ok=True)
        elif entry.isreg():
            self._clear(path)
            self._write(path, entry, data)
        elif entry.issym() or entry.islnk():
            # Older `docker save` writes a layer that comes twice as a link to the other, which may come later.
            start = path.rpartition("/")[0] if entry.issym() else ""
            to = f"{start}/{entry.linkname}" if entry.linkname[:1] != "/" else entry.linkname
            self._links[path] = os.path.normpath(to)

    def _follow_links(self) -> None:
        """What a link of an archive's leads to is there, or whoever reads it says that it is not."""
        for path, source in self._links.items():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if stat.S_ISREG(os.lstat(source).st_mode) and not os.path.lexists(path):
                    os.link(source, path)

    def _clear(self, path: str) -> bool:
        """Make room for an entry. Whether a whiteout was there: what lies below it in other layers stays hidden."""
        try:
            about = os.lstat(path)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(about.st_mode):
            shutil.rmtree(path)
            return True
        os.unlink(path)
        return stat.S_ISCHR(about.st_mode)

    def _whiteout(self, parent: str, name: str) -> None:
        if name in ("", ".", ".."):
            raise Refused("a whiteout without a name")
        path = f"{parent}/{name}"
        if os.path.lexists(path):
            # It hides what other layers have; what this layer has itself stays.
            if os.path.isdir(path) and not os.path.islink(path):
                self._hide_below(path)
                self._say(path)  # another folder than the one that other layers have
            return
        os.mknod(path, stat.S_IFCHR, 0)

    def _hide_below(self, path: str) -> None:
        os.setxattr(path, _OPAQUE_ATTRIBUTE, b"y")

    def _link(self, entry: tarfile.TarInfo, path: str) -> None:
        source = "/" + "/".join(parts_of(entry.linkname))
        try:
            if not stat.S_ISDIR(os.lstat(source).st_mode):
                os.link(source, path, follow_symlinks=False)
                return
        except FileNotFoundError:
            raise Refused(f"{entry.name[:200]!r} is a link to {source[:200]!r}, which is not in this layer") from None
        raise Refused(f"{entry.name[:200]!r} is a hard link to a folder")

    def _file(self, entry: tarfile.TarInfo, path: str, data: Bounded) -> None:
        self._write(path, entry, data)
        self._dress(entry, path)

    def _write(self, path: str, entry: tarfile.TarInfo, data: Bounded) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            sparse = getattr(entry, "sparse", None)
            for offset, size in sparse if sparse is not None else [(0, entry.size)]:
                if min(offset, size) < 0 or offset + size > entry.size:
                    raise Refused(f"{entry.name[:200]!r}: its holes lie outside it")
                os.lseek(fd, offset, os.SEEK_SET)
                for part in _pieces(data, size):
                    self._spend(len(part))
                    os.write(fd, part)
            if sparse is not None:
                os.ftruncate(fd, entry.size)
        finally:
            os.close(fd)

    def _spend(self, count: int) -> None:
        """Leave the host what it needs: a bomb must not fill its disk."""
        self.counts["bytes"] += count
        self._unseen += count
        if self._unseen < _LOOK_EVERY:
            return
        self._unseen = 0
        about = os.statvfs("/")
        if about.f_bavail * about.f_frsize < self._reserve or (about.f_files and about.f_favail < 1024):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _dress(self, entry: tarfile.TarInfo, path: str) -> None:
        """Owner, mode, attributes and time, in this order: a new owner takes set-id bits and capabilities away."""
        link = entry.issym()
        if self._own:
            uid, gid = (number if 0 <= number < _IDS else _NOBODY for number in (entry.uid, entry.gid))
            self.counts["ids"] += (uid, gid) != (entry.uid, entry.gid)
            os.chown(path, uid, gid, follow_symlinks=False)
        if not link:
            os.chmod(path, entry.mode & 0o7777)
            self._attributes(entry, path)
        moment = int(max(0, min(entry.mtime, 2**33)))
        if entry.isdir():
            self._times[path] = moment  # what is put into it later would change it
        else:
            os.utime(path, (moment, moment), follow_symlinks=False)

    def _attributes(self, entry: tarfile.TarInfo, path: str) -> None:
        for key, value in entry.pax_headers.items():
            name = key.removeprefix(_XATTR)
            if name == key:
                continue
            # Nothing that an overlay or the host's security modules would read.
            taken = name == "security.capability" or (name.startswith("user.") and not name.startswith("user.overlay."))
            try:
                if taken:
                    os.setxattr(path, name, value.encode("utf-8", "surrogateescape"))
            except OSError:
                taken = False
            self.counts["attributes"] += not taken

    def finish(self) -> None:
        self._follow_links()
        for path, moment in self._times.items():
            if os.path.isdir(path) and not os.path.islink(path):
                os.utime(path, (moment, moment), follow_symlinks=False)


def _pieces(data: Bounded, size: int) -> Iterator[bytes]:
    while size > 0:
        part = data.read(min(_CHUNK, size))
        if not part:
            raise Refused("it ends in the middle of a file")
        size -= len(part)
        yield part


def entries(data: Bounded) -> Iterator[tarfile.TarInfo]:
    with tarfile.TarFile(fileobj=cast(Any, data), tarinfo=Entry, encoding="utf-8", errors="surrogateescape") as archive:
        while True:
            try:
                entry = archive.next()
            except tarfile.ReadError:
                # Some tools (umoci 0.4) leave the last file's padding away, and everybody reads that. Whether all of
                # the file is there is seen where it is written.
                if not 0 < cast(Any, archive).offset - data.tell() < tarfile.BLOCKSIZE:
                    raise
                return
            if entry is None:
                return
            cast(Any, archive).members = []  # tarfile would keep all of them
            yield entry


def kind_of(data: Bounded) -> str:
    """`oci` and `docker` archives hold images; any other tar is a root file system."""
    found = ""
    for entry in entries(data):
        name = "/".join(parts_of(entry.name))
        if name == "oci-layout":
            return "oci"
        if name == "manifest.json":
            found = "docker"
    return found or "rootfs"


def main(target: str, mode: str, own: str, most_bytes: str, most_entries: str, reserve: str) -> dict[str, Any]:
    raw = open(0, "rb", buffering=_CHUNK, closefd=False)  # noqa: SIM115 - stdin, for as long as this runs
    stream = decompressed(raw)  # what it imports must be there before the root changes
    data = Bounded(stream, int(most_bytes))
    if mode == "kind":
        return {"kind": kind_of(data)}
    os.chroot(target)
    os.chdir("/")
    os.umask(0)
    tree = Tree(own=own == "own", reserve=int(reserve), most_entries=int(most_entries), plain=mode == "archive")
    for entry in entries(data):
        tree.add(entry, data)
    tree.finish()
    return {"diffId": data.finish(), **tree.counts}


def _run() -> dict[str, Any]:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    try:
        return main(*sys.argv[1:])
    except MemoryError:
        why = "it needs more memory than any honest layer does"  # told below, when what was read is let go
    except Refused as error:
        return {"refused": str(error)}
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return {"full": True}
        return {"refused": f"{error.strerror or error}: {str(error.filename or '')[:200]!r}"}
    except Exception as error:  # noqa: BLE001 - whatever a hostile layer provokes in a parser ends this one unpacking
        return {"refused": f"it cannot be read: {type(error).__name__}: {str(error)[:300]}"}
    return {"refused": why}


if __name__ == "__main__":
    os.write(1, json.dumps(_run()).encode())
