"""The image `host`: this machine's /usr and the Python that runs the server, under a private writable layer.

The first run needs no registry and no root file system. It shows a sandbox this machine's installed programs,
nothing of its users or services: /etc is made afresh, with a few public parts copied.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from runra.node.images import Overlay, RootFilesystem

#: Bump when the skeleton changes: an older one is built again.
_VERSION: Final = "2"

_FOLDERS: Final = {
    **dict.fromkeys(("dev", "etc", "home", "media", "mnt", "opt", "proc", "root", "run", "srv", "sys", "usr"), 0o755),
    **dict.fromkeys(("var", "var/cache", "var/lib", "var/log", "var/spool", "workspace"), 0o755),
    **dict.fromkeys(("tmp", "var/tmp"), 0o1777),
}

#: Public configuration that programs in /usr look for. Nothing with secrets, users or addresses of this machine.
_ETC_COPIES: Final = """
    alternatives bash.bashrc ca-certificates ca-certificates.conf debian_version inputrc java-17-openjdk
    ld.so.cache ld.so.conf ld.so.conf.d login.defs magic magic.mime mime.types pam.conf pam.d perl profile protocols
    rpc security services shells skel ssl/certs ssl/openssl.cnf terminfo
""".split()

_ETC_FILES: Final = {
    "passwd": (
        "root:x:0:0:root:/root:/bin/bash\n"
        "daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n"
        "user:x:1000:1000:user:/home/user:/bin/bash\n"
        "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
    ),
    # Nobody has a password; root needs none to become somebody.
    "shadow": "".join(f"{name}:*:19000:0:99999:7:::\n" for name in ("root", "daemon", "user", "nobody")),
    "group": "root:x:0:\ndaemon:x:1:\ntty:x:5:\nusers:x:100:\nuser:x:1000:\nnogroup:x:65534:\n",
    "nsswitch.conf": "".join(f"{name}: files\n" for name in ("passwd", "group", "shadow", "services", "protocols"))
    + "hosts: files dns\n",
    "localtime": None,
    "timezone": "Etc/UTC\n",
}


def _python_prefix() -> Path | None:
    """Where the Python that runs us lives, when /usr does not hold it already."""
    prefix = Path(sys.base_prefix).resolve()
    return None if prefix == Path("/usr") or Path("/usr") in prefix.parents else prefix


def _merged_usr_links() -> dict[str, str]:
    """/bin, /lib… as the host has them: links into /usr on a merged-/usr system."""
    names = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
    return {name: str(Path("/", name).readlink()) for name in names if Path("/", name).is_symlink()}


def _unmerged() -> list[Path]:
    folders = (Path("/", name) for name in ("bin", "sbin", "lib", "lib64"))
    return [folder for folder in folders if folder.is_dir() and not folder.is_symlink()]


def _build(root: Path) -> None:
    for folder, mode in _FOLDERS.items():
        (root / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        (root / folder).chmod(mode)
    user_home = root / "home/user"
    user_home.mkdir()
    if os.geteuid() == 0:
        os.chown(user_home, 1000, 1000)
    for link, where in _merged_usr_links().items():
        (root / link).symlink_to(where)
    for path in [*_unmerged(), *([prefix] if (prefix := _python_prefix()) else [])]:
        (root / path.relative_to("/")).mkdir(parents=True, exist_ok=True)
    for file, text in _ETC_FILES.items():
        if text is None:
            (root / "etc" / file).symlink_to("/usr/share/zoneinfo/Etc/UTC")
        else:
            (root / "etc" / file).write_text(text)
    (root / "etc/shadow").chmod(0o600)
    (root / "etc/os-release").symlink_to("../usr/lib/os-release")
    (root / "etc/mtab").symlink_to("../proc/self/mounts")
    (root / "etc/resolv.conf").write_text("")
    for name in _ETC_COPIES:
        source, target = Path("/etc", name), root / "etc" / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir() and not source.is_symlink():
            # What an ordinary user may not read is not for a sandbox either.
            shutil.copytree(source, target, symlinks=True, ignore=_private)
        elif source.is_file() and source.stat().st_mode & 0o004:
            shutil.copyfile(source, target)


def _private(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not Path(folder, name).lstat().st_mode & 0o004]


def prepare(images_dir: Path) -> RootFilesystem:
    """The image's root, its skeleton built when it is missing or stale. Blocks for some milliseconds then."""
    prefix = _python_prefix()
    root = images_dir / f"host-{_VERSION}{str(prefix or '').replace('/', '-')}"
    if not root.exists():
        images_dir.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=".host-", dir=images_dir))
        try:
            fresh.chmod(0o755)
            _build(fresh)
            fresh.rename(root)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not root.exists():  # otherwise another process was quicker
                raise
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    shown = [Path("/usr"), *_unmerged(), *([prefix] if prefix else [])]
    return RootFilesystem(
        overlays=(Overlay("/", (root,)), *(Overlay(str(place), (place,)) for place in shown)),
        env={"PATH": f"{prefix}/bin:{path}" if prefix else path, "LANG": "C.UTF-8"},
    )
