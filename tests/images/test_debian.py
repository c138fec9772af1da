"""`runra image build debian:SUITE --packages python3` whole, and apt in a sandbox of it. `make images` runs this: it takes
some minutes, and Debian's mirrors."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.images.test_import import real
from tests.server.conftest import Running

if not os.environ.get("RUNRA_TEST_DEBIAN"):
    pytest.skip("a Debian is built by `make images`", allow_module_level=True)

#: A package and its repository, made inside: apt needs no network for it, and all the rest is as ever.
PACKAGE = r"""
mkdir -p /srv/repo/pkg/DEBIAN /srv/repo/pkg/usr/bin && cd /srv/repo
printf 'Package: greeting\nVersion: 1.0\nArchitecture: all\nMaintainer: N <n@example.org>\nDescription: hello\n' > pkg/DEBIAN/control
printf '#!/bin/sh\nset -e\nid -u > /srv/configured-by\n' > pkg/DEBIAN/postinst
printf '#!/bin/sh\necho hello from a package\n' > pkg/usr/bin/greeting
chmod 755 pkg/DEBIAN/postinst pkg/usr/bin/greeting
dpkg-deb --build pkg greeting.deb
sum=$(sha256sum greeting.deb | cut -d' ' -f1)
{ cat pkg/DEBIAN/control; printf 'Filename: ./greeting.deb\nSize: %s\nSHA256: %s\n\n' $(stat -c %s greeting.deb) $sum; } > Packages
"""
INSTALL = r"""
rm -rf /etc/apt/sources.list.d/* && echo 'deb [trusted=yes] file:/srv/repo ./' > /etc/apt/sources.list
apt-get update && apt-get install -y greeting
"""


@pytest.mark.timeout(900)
async def test_a_whole_debian_with_python_and_apt(real: Running, tmp_path: Path) -> None:
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    assert release["ID"] == "debian", "this machine's package sources have no Debian"
    suite = release["VERSION_CODENAME"]
    environment = {**os.environ, "RUNRA_API_URL": real.client.url, "RUNRA_API_KEY": real.client.key}

    async def build(*words: str) -> str:
        command = [sys.executable, "-m", "runra.cli", "image", "build", *words]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, env=environment, timeout=800)
        assert done.returncode == 0, done.stderr.decode()[-3000:]
        return done.stdout.decode()

    assert await build(f"debian:{suite}", "--packages", "python3") == f"debian:{suite}\n"
    box = await real.client.sandbox(image=f"debian:{suite}")
    done = await real.client.run(box["id"], "python3 -c 'print(6 * 7)'; bash -c 'echo $BASH'; dpkg -s python3 | head -n 2")
    assert done["stdout"] == "42\n/usr/bin/bash\nPackage: python3\nStatus: install ok installed\n"
    recipe = ("--from", f"debian:{suite}", "--run", PACKAGE, "--run", INSTALL, "-t", "greeting:1")
    assert await build(*recipe) == "greeting:1\n"
    box = await real.client.sandbox(image="greeting:1")
    done = await real.client.run(box["id"], "greeting; cat /srv/configured-by; dpkg -s greeting | sed -n 2p")
    assert done["stdout"] == "hello from a package\n0\nStatus: install ok installed\n"


__all__ = ["real"]
