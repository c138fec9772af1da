"""Two layers of our own around every image's: the folders a wall mounts things on, and what any sandbox expects.

`top` lies above the image: /proc, /dev and the like are folders there whatever the image made of them, so no mount
ever follows an image's link. `base` lies below it: /tmp, /workspace, an /etc/passwd, where the image has none.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Final

#: Bump when they change: sandboxes keep the ones they have.
_VERSION: Final = "1"

_TOP: Final = {"proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755}
_BASE: Final = {
    **dict.fromkeys(("etc", "home", "mnt", "opt", "srv", "usr", "var", "workspace"), 0o755),
    "root": 0o700,
    **dict.fromkeys(("tmp", "var/tmp"), 0o1777),
}
_FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/resolv.conf": "",
}


def prepare(images_dir: Path) -> tuple[Path, Path]:
    """(top, base), made when they are missing."""
    home = images_dir / f"skeleton-{_VERSION}"
    if not home.exists():
        fresh = Path(tempfile.mkdtemp(prefix=".skeleton-", dir=images_dir))
        try:
            for name, folders in (("top", _TOP), ("base", _BASE)):
                (fresh / name).mkdir()
                (fresh / name).chmod(0o755)
                for folder, mode in folders.items():
                    (fresh / name / folder).mkdir()
                    (fresh / name / folder).chmod(mode)
            for file, text in _FILES.items():
                (fresh / "base" / file).write_text(text)
                (fresh / "base" / file).chmod(0o644)
            fresh.rename(home)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not home.exists():  # otherwise another process was quicker
                raise
    return home / "top", home / "base"
