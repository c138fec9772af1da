"""Images as a real Docker engine, a C compiler and Debian make them: `docker save`, musl, glibc with bash and Python."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runra.node.agent.types import ExecSpec
from tests.hosting import Host, both_walls
from tests.images.conftest import refused
from tests.images.oci import Layer, busybox, docker_archive, image, oci_archive
from tests.images.test_import import put
from tests.providers.engine import IMAGE, engine

#: What musl's own gcc names in every program as the one that loads it.
LOADER = "lib/ld-musl-x86_64.so.1"
PROGRAM = """
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int main(void) {
    struct passwd *who = getpwuid(getuid());
    printf("%s in %s\\n", who ? who->pw_name : "nobody known", getenv("FLAVOUR"));
    return 3;
}
"""


@pytest.fixture(scope="module")
def docker() -> Iterator[str]:
    with engine() as url:
        yield url


async def docker_does(url: str, *words: str, stdin: bytes = b"") -> bytes:
    done = await asyncio.to_thread(
        subprocess.run, ["docker", "-H", url, *words], input=stdin, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


async def test_what_docker_builds_and_saves(docker: str, host: Host, tmp_path: Path) -> None:
    """Layers of the engine's own: `docker import` made the lowest, `docker build` ran commands on it."""
    (tmp_path / "context").mkdir()
    (tmp_path / "context/mine").write_text("copied\n")
    (tmp_path / "context/Dockerfile").write_text(
        f"FROM {IMAGE}\n"
        "COPY mine /tmp/in/mine\n"
        "RUN rm /bin/wget && mkdir /made && chown 7:8 /made && chmod 2750 /made && echo docker > /made/by && "
        "ln /made/by /made/hard && rm -r /home && mkdir /home && echo anew > /home/file\n"
        'ENV FLAVOUR=docker\nWORKDIR /made\nUSER 7\nLABEL kind=test\nENTRYPOINT ["/bin/false"]\n'
    )
    await docker_does(docker, "build", "--network=none", "-q", "-t", "team/built:1", str(tmp_path / "context"))
    saved = await docker_does(docker, "save", "team/built:1")
    made = await put(host, saved)
    assert (made.reference, made.user, made.workdir) == ("team/built:1", "7", "/made")
    assert (made.entrypoint, made.labels, made.env["FLAVOUR"]) == (["/bin/false"], {"kind": "test"}, "docker")
    sandbox = await host.create(image="team/built:1")
    text, _ = await host.run(
        sandbox,
        "echo $FLAVOUR; cat /made/by /tmp/in/mine; stat -c '%a %u:%g' /made /tmp; stat -c %h /made/hard; ls /home; ls /bin/wget",
    )
    assert text.splitlines() == [
        *("docker", "docker", "copied", "2750 7:8", "1777 0:0", "2", "file", "ls: /bin/wget: No such file or directory")
    ]
    both = await docker_does(docker, "save", "team/built:1", IMAGE)
    assert "holds 2 images" in (await refused(put(host, both))).message


async def test_docker_loads_what_we_call_docker_save(docker: str) -> None:
    """The archives that other tests are fed with are ones a real engine takes."""
    said = await docker_does(docker, "load", stdin=docker_archive(busybox(), name="ours:1", Env=["A=1"]))
    assert b"ours:1" in said


@both_walls
async def test_a_program_linked_with_musl(host: Host, tmp_path: Path) -> None:
    """Loaded by musl's own loader; nothing of glibc is in the image, and no shell."""
    compiler = shutil.which("musl-gcc")
    loader = Path("/", LOADER)
    if compiler is None or not loader.exists():
        pytest.skip("no musl: apt-get install musl-tools (this test knows the loader's name on x86_64)")
    (tmp_path / "main.c").write_text(PROGRAM)
    build = [compiler, "-o", str(tmp_path / "main"), str(tmp_path / "main.c")]
    await asyncio.to_thread(subprocess.run, build, check=True, timeout=60)
    program = (tmp_path / "main").read_bytes()
    assert f"/{LOADER}".encode() in program, "it is linked statically"
    layer = Layer().add(LOADER, loader.read_bytes(), mode=0o755).add("app", program, mode=0o755)
    await put(host, oci_archive(image(layer, Env=["FLAVOUR=musl"]), "musl:1"))
    sandbox = await host.create(image="musl:1")
    async with sandbox.use() as agent, await agent.exec(ExecSpec(argv=("/app",), env=sandbox.env)) as process:
        said = b"".join([chunk.data async for chunk in process.output()])
        assert (said, (await process.wait()).code) == (b"root in musl\n", 3)


async def test_debian_with_bash_and_python(debian_root: Path, host: Host) -> None:
    """Programs of glibc's, behind each wall."""
    await put(host, debian_root.read_bytes(), "debian:python")
    for wall in ("bubblewrap", *(["gvisor"] if shutil.which("runsc") and os.geteuid() == 0 else [])):
        sandbox = await host.create(image="debian:python", isolation=wall)
        inside = "import os, socket; print(os.getpid() > 1, socket.gethostname())"
        text, end = await host.run(sandbox, f"[[ $BASH_VERSION ]] && id -un && python3 -c '{inside}'")
        assert (text, end.code) == (f"root\nTrue {sandbox.id.removeprefix('sb_')}\n", 0)
