"""Images from files, from sandboxes, from recipes; through the SDK and the command line, on a real server."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from runra import AsyncRunra, Runra, RunraError
from runra.node.images.commit import bytes_below
from runra.sdk._async import images
from runra.server.settings import ServerSettings
from tests.hosting import Host
from tests.images import oci
from tests.images.conftest import ORGANIZATION, layer_folders, leftovers, pull, refused
from tests.images.oci import Layer, busybox, docker_archive, image, index, oci_archive
from tests.images.registries import RealRegistry, needs
from tests.server.conftest import Running, started


async def put(host: Host, data: bytes, name: str | None = None) -> Any:
    async def chunks() -> Any:
        for at in range(0, len(data), 100_000):
            yield data[at : at + 100_000]

    return await host.node.images.import_archive(chunks(), name, ORGANIZATION, shared=False)


@pytest.fixture(autouse=True)
def shell_for_images() -> None:
    if not oci.BUSYBOX.exists():
        pytest.skip("no static busybox: apt-get install busybox-static")


async def test_every_form_of_archive(host: Host) -> None:
    made = image(busybox(), Layer().add("from", b"oci"), Env=["A=1"])
    assert (await put(host, oci_archive(made, "docker.io/library/one:1"))).reference == "one:1"
    other = "arm64" if oci.ARCHITECTURE != "arm64" else "amd64"
    multi = index(**{oci.ARCHITECTURE: made, other: image(Layer().add("x", b"y"), architecture=other)})
    assert (await put(host, oci_archive(multi), "two:1")).digest == multi.digest
    saved = docker_archive(busybox(), Layer().add("from", b"docker"), name="team/three:1", WorkingDir="/srv")
    three = await put(host, saved)
    assert (three.reference, three.workdir) == ("team/three:1", "/srv")
    packed = oci.packed(busybox().add("from", b"rootfs").bytes(), "zstd")[0]
    assert (await put(host, packed, "four:1")).layers == 1
    for name, says in (("one:1", "oci"), ("two:1", "oci"), ("team/three:1", "docker"), ("four:1", "rootfs")):
        sandbox = await host.create(image=name)
        assert (await host.run(sandbox, "cat /from"))[0] == says
    assert "give one" in (await refused(put(host, packed))).message
    assert "empty" in (await refused(put(host, b"", "five:1"))).message
    # An organization's own image is nobody else's.
    assert host.node.images.listed("org_other") == []


async def test_a_layer_that_docker_saved_as_a_link(host: Host) -> None:
    """A layer that two images have is a link to the other's, and comes first where its name does."""
    tar = busybox().add("from", b"link").bytes()
    listed = [{"Config": "c.json", "RepoTags": ["linked:1"], "Layers": ["0/layer.tar"]}]
    config = {
        "architecture": oci.ARCHITECTURE,
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [oci.digest(tar)]},
    }
    archive = Layer().link("0/layer.tar", "../1/layer.tar").link("2/layer.tar", "../3/none").add("1/layer.tar", tar)
    archive.add("c.json", json.dumps(config).encode()).add("manifest.json", json.dumps(listed).encode())
    await put(host, archive.bytes())
    assert (await host.run(await host.create(image="linked:1"), "cat /from"))[0] == "link"


async def test_what_skopeo_writes(registry: RealRegistry, host: Host, tmp_path: Path) -> None:
    """The real `docker save` form, and a real OCI archive."""
    needs("skopeo", "skopeo")
    name = registry.push(image(busybox(), Layer().add("from", b"skopeo")), "copied:1")
    for form in ("docker-archive", "oci-archive"):
        file = tmp_path / f"{form}.tar"
        command = [
            "skopeo",
            "copy",
            "--quiet",
            "--src-tls-verify=false",
            f"docker://{name}",
            f"{form}:{file}:copied:{form}",
        ]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
        made = await put(host, file.read_bytes(), f"copied:{form}")
        sandbox = await host.create(image=made.reference)
        assert (await host.run(sandbox, "cat /from"))[0] == "skopeo"


async def test_what_other_tools_make_and_push(registry: RealRegistry, host: Host, tmp_path: Path) -> None:
    """An image that umoci made and skopeo pushed, as it comes from the registry."""
    needs("umoci", "umoci")
    needs("skopeo", "skopeo")
    layout = tmp_path / "layout"
    (tmp_path / "said").write_text("by umoci")
    for words in (
        ["umoci", "init", "--layout", str(layout)],
        ["umoci", "new", "--image", f"{layout}:box"],
        ["umoci", "insert", "--image", f"{layout}:box", "/bin/busybox", "/bin/sh"],
        ["umoci", "insert", "--image", f"{layout}:box", str(tmp_path / "said"), "/srv/said"],
        ["umoci", "config", "--image", f"{layout}:box", "--config.env", "MADE=umoci"],
        [
            *("skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false"),
            *(f"oci:{layout}:box", f"docker://{registry.host}/umoci/box:1"),
        ],
    ):
        await asyncio.to_thread(subprocess.run, words, check=True, timeout=60)
    made = await pull(host, f"{registry.host}/umoci/box:1")
    assert made.env["MADE"] == "umoci"
    sandbox = await host.create(image=made.reference)
    assert (await host.run(sandbox, "read said </srv/said; echo $said by $MADE"))[0] == "by umoci by umoci\n"


async def test_a_commit_keeps_what_was_done_and_nobody(host: Host) -> None:
    await put(host, busybox().folder("old").add("old/file", b"").folder("srv").bytes(), "base:1")
    first = await host.create(image="base:1", env={"SECRET": "x"})
    await host.run(
        first,
        "echo new > /srv/new; rm -r /old; mkdir /old; touch /old/fresh; ln -s /etc/shadow /srv/link; chmod 4711 /srv/new",
    )
    made = await host.node.commit(first.id, "made:1", shared=False, step=False)
    assert (made.layers, made.source) == (2, "commit")
    assert "SECRET" not in made.env
    assert (await host.run(first, "echo still here"))[0] == "still here\n"
    second = await host.create(image="made:1")
    out, _ = await host.run(second, "cat /srv/new; ls /old; stat -c %a /srv/new; cat /etc/hostname; ls -la /srv/link")
    lines = out.splitlines()
    assert lines[:4] == ["new", "fresh", "4711", second.id.removeprefix("sb_")]
    identity = "cat /etc/machine-id"
    assert (await host.run(first, identity))[0] != (await host.run(second, identity))[0]
    # Again on top of that, paused, and from an image that is gone.
    await second.pause()
    await host.node.images.delete("made:1", ORGANIZATION)
    again = await host.node.commit(second.id, "made:2", shared=False, step=False)
    assert again.layers == 3
    third = await host.create(image="made:2")
    assert (await host.run(third, "cat /srv/new"))[0] == "new\n"
    await host.node.images.prune(ORGANIZATION, 0)
    assert len(layer_folders(host)) == 3


async def test_a_commit_follows_no_link_of_the_sandboxes(host: Host, tmp_path: Path) -> None:
    """Root inside makes its /etc a link to the host's: taking its identity out must not touch ours."""
    (tmp_path / "hostname").write_text("ours")
    await put(host, busybox("ln", "mv").bytes(), "base:1")
    sandbox = await host.create(image="base:1")
    await host.run(sandbox, f"rm -r /etc; ln -s {tmp_path} /etc")
    await host.node.commit(sandbox.id, "linked:1", shared=False, step=False)
    assert (tmp_path / "hostname").read_text() == "ours"


async def test_behind_gvisor_as_well(host: Host) -> None:
    needs("runsc", "runsc")
    await put(host, busybox().folder("old").add("old/file", b"").bytes(), "base:1")
    sandbox = await host.create(image="base:1", isolation="gvisor")
    assert (await host.run(sandbox, "echo data > /new; rm -r /old; mkdir /old; cat /new"))[0] == "data\n"
    await host.node.commit(sandbox.id, "made:1", shared=False, step=False)
    other = await host.create(image="made:1")
    assert (await host.run(other, "cat /new; ls /old"))[0] == "data\n"


async def test_what_cannot_be_committed_is_said(host: Host) -> None:
    sandbox = await host.create()
    error = await refused(host.node.commit(sandbox.id, "x:1", shared=False, step=False))
    assert (error.code, "not made of an image" in error.message) == ("INVALID_STATE", True)
    await put(host, busybox().bytes(), "base:1")
    sandbox = await host.create(image="base:1")
    assert (
        await refused(host.node.commit(sandbox.id, "Not A Name", shared=False, step=False))
    ).code == "INVALID_REQUEST"
    await sandbox.terminate()
    assert (await refused(host.node.commit(sandbox.id, "x:1", shared=False, step=False))).code == "SANDBOX_NOT_FOUND"


async def test_a_commit_that_takes_too_long(host: Host) -> None:
    await put(host, busybox().bytes(), "base:1")
    sandbox = await host.create(image="base:1")
    images, settings = host.node.images, host.node.images.settings
    images.settings = dataclasses.replace(settings, pull_timeout=0.001)
    error = await refused(host.node.commit(sandbox.id, "slow:1", shared=False, step=False))
    assert (error.code, error.status, "--pull-timeout" in error.message) == ("INTERNAL_ERROR", 504, True)
    images.settings = settings
    await images.layers.settled()
    assert leftovers(host) == []
    assert (await host.run(sandbox, "echo goes on"))[0] == "goes on\n"


async def test_a_prune_spares_what_sandboxes_are_made_of_alone(host: Host) -> None:
    """Not what else has a layer of it: a sandbox of a base would keep all that was ever built on that."""
    await put(host, busybox().bytes(), "base:1")
    sandbox = await host.create(image="base:1")
    await host.run(sandbox, "echo x > /made")
    await host.node.commit(sandbox.id, "made:1", shared=False, step=False)
    pruned = await host.node.images.prune(ORGANIZATION, 0)
    assert pruned.references == ["made:1"]
    assert [one.reference for one in host.node.images.listed(ORGANIZATION)] == ["base:1"]
    assert (await host.run(sandbox, "cat /made"))[0] == "x\n"
    other = await host.create(image="base:1")
    await sandbox.terminate()
    await host.node.images.delete("base:1", ORGANIZATION)
    assert (await host.run(other, "echo there"))[0] == "there\n"


# --- over REST ---


@pytest.fixture
async def real(tmp_path: Path) -> AsyncIterator[Running]:
    settings = ServerSettings(data_dir=tmp_path / "server", client_config=tmp_path / "config.json")
    async with started(settings, real=True) as run:
        yield run
        await asyncio.gather(*(sandbox.terminate() for sandbox in list(run.node.sandboxes.values())))
        await run.node.settled()


async def in_thread(work: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(work)


async def test_the_sdk_pulls_with_progress_and_builds(real: Running, registry: RealRegistry) -> None:
    name = registry.push(image(busybox(), Layer().add("big", os.urandom(1 << 20)), how=""), "sdk/app:1")
    url, key = real.client.url, real.client.key
    async with AsyncRunra(api_key=key, api_url=url) as client:
        seen = [step async for step in client.images.pulling(name)]
        assert seen, "no progress was told"
        assert all(step.layers in (0, 2) for step in seen)
        assert (await client.images.pull(name)).state == "ready"
        with pytest.raises(RunraError) as caught:
            await client.images.pull(f"{registry.host}/no/such:1")
        assert (caught.value.code, caught.value.details["reference"]) == (
            "INVALID_REQUEST",
            f"{registry.host}/no/such:1",
        )
        steps: list[tuple[str, bool]] = []
        run = ["echo one > /one", "cat /one; echo two > /two"]
        said: list[bytes] = []
        built = await client.images.build(
            "built:1",
            base=name,
            run=run,
            on_step=lambda *step: steps.append(step),
            on_output=lambda chunk: said.append(chunk.data),
        )
        assert steps == [(run[0], False), (run[1], False)]
        assert b"".join(said) == b"one\n"
        steps.clear()
        await client.images.build(
            "built:2", base=name, run=[run[0], "exit 0"], on_step=lambda *step: steps.append(step)
        )
        assert steps == [(run[0], True), ("exit 0", False)]
        with pytest.raises(RunraError, match="exit code 7"):
            await client.images.build("built:3", base=name, run=[*run, "exit 7"])
        async with await client.sandboxes.create(image="built:1") as box:
            assert (await box.exec("cat /one /two")).stdout == "one\ntwo\n"
        assert {one.reference for one in await client.images.list()} == {name, "built:1", "built:2"}
        assert len(await client.images.list(steps=True)) > 3
        assert (await client.images.get("docker.io/library/built:1")).digest == built.digest

    def sync() -> None:
        with Runra(api_key=key, api_url=url) as client:
            assert client.images.pull(name).reference == name
            list(client.images.pulling(name))
            with pytest.raises(RunraError):
                client.images.pull(f"{registry.host}/no/such:1")
            made = client.images.import_(busybox().bytes(), name="sync:1", shared=True)
            assert made.shared
            assert client.images.delete("sync:1").reference == "sync:1"
            client.images.prune(unused_for_ms=3_600_000)

    await in_thread(sync)


async def test_a_recipe_takes_the_room_of_its_steps_together(real: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(real.node)

    async def on_disk() -> int:
        await real.node.images.layers.settled()
        return sum(bytes_below(folder) for folder in layer_folders(host))

    async with AsyncRunra(api_key=real.client.key, api_url=real.client.url) as client:
        base = await client.images.import_(busybox("head").bytes(), name="base:1")
        before, mb = await on_disk(), 1 << 20
        run = [f"head -c {count}m /dev/urandom > /{count}" for count in (6, 5, 4)]
        made = await client.images.build("sum:1", base="base:1", run=run)
        # 6 + 5 + 4 MB, and not 6 + 11 + 15 + 15.
        assert 15 * mb <= await on_disk() - before < 16 * mb
        assert 15 * mb <= made.size_bytes - base.size_bytes < 16 * mb
        assert made.layers == base.layers + 3
        after = await on_disk()
        steps: list[bool] = []
        tell = {"on_step": lambda _, kept: steps.append(kept)}
        again = await client.images.build("sum:2", base="base:1", run=run, **tell)
        assert (steps, again.digest, await on_disk()) == ([True] * 3, made.digest, after)
        async with await client.sandboxes.create(image="sum:2") as box:
            assert (await box.exec("stat -c '%n %s' /4 /5 /6")).stdout == f"/4 {4 * mb}\n/5 {5 * mb}\n/6 {6 * mb}\n"
        # Where layers become few, steps share one; on one that has them all, none is begun.
        monkeypatch.setattr(images, "_SHARE_FROM", 5)
        more = [*run, "echo a > /a", "cat /a; echo b > /b", "echo c > /c"]
        long = await client.images.build("long:1", base="base:1", run=more)
        assert long.layers == 5
        monkeypatch.setattr(images, "_MOST_LAYERS", 5)
        steps.clear()
        run = [*more, "cat /a /b /c"]
        assert (await client.images.build("long:2", base="base:1", run=run, **tell)).layers == 5
        assert steps == [True] * 3 + [False] * 4


async def test_rest_keeps_tenants_and_keys_apart(real: Running, registry: RealRegistry) -> None:
    client = real.client
    name = registry.push(image(busybox()), "tenants:1")
    archive = oci_archive(image(busybox()))
    made = await client.call("POST", "/images/import?name=ours:1", data=archive)
    assert (made.status, made.json["reference"], made.json["shared"]) == (201, "ours:1", False)
    organization = (await client.call("POST", "/organizations", json={"name": "other"})).json["id"]
    other = client.with_key((await client.new_key(profile="full", organizationId=organization))["key"])
    assert (await other.call("GET", "/images")).json["data"] == []
    for method in ("GET", "DELETE"):
        assert (await other.call(method, "/images/ours:1")).status == 404
    user = client.with_key((await client.new_key(profile="sandbox-user"))["key"])
    assert (await user.call("GET", "/images/docker.io/library/ours:1")).json["reference"] == "ours:1"
    for method, path, body in (
        ("POST", "/images", {"reference": name}),
        ("POST", "/images/prune", {}),
        ("DELETE", "/images/ours:1", None),
    ):
        assert (await user.call(method, path, json=body)).error["code"] == "FORBIDDEN"
    # A key for certain images, however their names are written.
    limits = {"images": ["ours:1", "host"]}
    narrow = client.with_key((await client.new_key(profile="full", limits=limits))["key"])
    box = await narrow.sandbox(image="docker.io/library/ours:1")
    assert (await narrow.call("POST", "/images", json={"reference": name})).error["code"] == "FORBIDDEN"
    assert (await narrow.call("POST", "/images/import", data=archive)).status == 400
    refused = await narrow.call("POST", f"/sandboxes/{box['id']}/commit", json={"reference": "mine:1"})
    assert refused.error["code"] == "FORBIDDEN"
    assert (await other.call("POST", f"/sandboxes/{box['id']}/commit", json={"reference": "x:1"})).status == 404
    # A login is never said again, not even in an error about it.
    login = {"username": "me", "password": 12345678}
    error = await client.call("POST", "/images", json={"reference": name, "credentials": login})
    assert error.status == 400
    assert "12345678" not in error.raw.decode()


async def test_another_name_takes_no_room(real: Running) -> None:
    client, images = real.client, real.node.images
    host = Host(real.node)
    archive = oci_archive(image(busybox(), Env=["A=1"]))
    made = (await client.call("POST", "/images/import", params={"name": "one:1"}, data=archive)).json
    tagged = await client.call("POST", "/images/tag", json={"image": "one:1", "reference": "team/two:1"})
    assert (tagged.status, tagged.json["reference"], tagged.json["shared"]) == (201, "team/two:1", False)
    assert all(tagged.json[field] == made[field] for field in ("digest", "layers", "sizeBytes", "env"))
    assert len(layer_folders(host)) == 1
    organization = (await client.call("POST", "/organizations", json={"name": "other"})).json["id"]
    other = client.with_key((await client.new_key(profile="full", organizationId=organization))["key"])
    mine = {"image": "team/two:1", "reference": "mine:1"}
    assert (await other.call("POST", "/images/tag", json=mine)).status == 404
    user = client.with_key((await client.new_key(profile="sandbox-user"))["key"])
    assert (await user.call("POST", "/images/tag", json=mine)).error["code"] == "FORBIDDEN"
    # A key for certain images gets no other under one of their names, nor one of them under another.
    narrow = client.with_key((await client.new_key(profile="full", limits={"images": ["one:1", "mine:1"]}))["key"])
    for image_name, reference in (("team/two:1", "mine:1"), ("one:1", "three:1")):
        body = {"image": image_name, "reference": reference}
        assert (await narrow.call("POST", "/images/tag", json=body)).error["code"] == "FORBIDDEN"
    assert (await narrow.call("POST", "/images/tag", json={"image": "one:1", "reference": "mine:1"})).status == 201
    # The names are worth the same: either may go.
    for name in ("one:1", "mine:1"):
        await client.call("DELETE", f"/images/{name}")
    await images.layers.settled()
    box = await client.sandbox(image="team/two:1")
    done = await client.call("POST", f"/sandboxes/{box['id']}/execute", json={"command": "echo $A"})
    assert done.json["stdout"] == "1\n"


# --- the command line ---


@pytest.fixture
def cli(real: Running, tmp_path: Path) -> Callable[..., Any]:
    environment = {
        **os.environ,
        "RUNRA_API_URL": real.client.url,
        "RUNRA_API_KEY": real.client.key,
        "STORAGE_DRIVER": "vfs",
    }
    environment.pop("RUNRA_CONFIG_PATH", None)

    async def run(*words: str, fails: bool = False, stdin: bytes = b"") -> str:
        command = [sys.executable, "-m", "runra.cli", "image", *words]
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, env=environment, input=stdin, timeout=110, cwd=tmp_path
        )
        assert (done.returncode != 0) is fails, done.stderr.decode()
        return done.stderr.decode() if fails else done.stdout.decode()

    return run


async def test_the_command_line(cli: Callable[..., Any], registry: RealRegistry, tmp_path: Path) -> None:
    name = registry.push(image(busybox(), Env=["A=1"]), "cli/app:1")
    assert await cli("pull", name) == f"{name}\n"
    lines = [json.loads(line) for line in (await cli("pull", name, "--json")).splitlines()]
    assert lines[-1]["reference"] == name
    (tmp_path / "a.tar").write_bytes(oci_archive(image(busybox()), "from/file:1"))
    assert await cli("import", "a.tar") == "from/file:1\n"
    assert await cli("import", "-", "from/stdin:1", stdin=busybox().bytes()) == "from/stdin:1\n"
    assert "has no image" in await cli("pull", f"{registry.host}/none:1", fails=True)
    built = await cli("build", "--from", name, "--run", "echo hi > /hi", "-t", "cli:built")
    assert built == "cli:built\n"
    listed = (await cli("ls")).splitlines()
    assert listed[0].split()[:3] == ["IMAGE", "DIGEST", "SIZE"]
    assert {line.split()[0] for line in listed[1:]} == {name, "from/file:1", "from/stdin:1", "cli:built"}
    assert json.loads(await cli("inspect", "cli:built"))["env"]["A"] == "1"
    assert await cli("tag", "cli:built", "cli:again") == "cli:again\n"
    assert await cli("rm", "cli:built", "cli:again", "from/file:1") == "cli:built\ncli:again\nfrom/file:1\n"
    assert "from/stdin:1" in await cli("prune")
    assert json.loads(await cli("ls", "--json")) == []


async def test_a_dockerfile_through_buildah(cli: Callable[..., Any], real: Running, tmp_path: Path) -> None:
    needs("buildah", "buildah")
    (tmp_path / "context").mkdir()
    (tmp_path / "context/busybox").write_bytes(oci.BUSYBOX.read_bytes())
    (tmp_path / "context/busybox").chmod(0o755)
    (tmp_path / "context/Dockerfile").write_text(
        'FROM scratch\nCOPY busybox /bin/sh\nENV BUILT=yes\nUSER 1000\nWORKDIR /work\nENTRYPOINT ["/bin/sh"]\n'
    )
    assert await cli("build", "context", "-t", "dockerfile:1") == "dockerfile:1\n"
    box = await real.client.sandbox(image="dockerfile:1")
    assert (await real.client.run(box["id"], "echo $BUILT"))["stdout"] == "yes\n"
    info = (await real.client.call("GET", "/images/dockerfile:1")).json
    assert (info["user"], info["workdir"], info["entrypoint"]) == ("1000", "/work", ["/bin/sh"])
    (tmp_path / "context/Dockerfile").write_text("FROM scratch\nCOPY nothing-there /x\n")
    assert "buildah ended with" in await cli("build", "context", "-t", "dockerfile:2", fails=True)


async def test_debian_by_name(cli: Callable[..., Any], real: Running) -> None:
    needs("mmdebstrap", "mmdebstrap")
    suite = next(
        (
            line.partition("=")[2]
            for line in Path("/etc/os-release").read_text().splitlines()
            if line.startswith("VERSION_CODENAME=")
        ),
        "",
    )
    if "ID=debian" not in Path("/etc/os-release").read_text().splitlines():
        pytest.skip("this machine is no Debian, and its package sources have none")
    made = await cli("build", f"debian:{suite}", "--bare", "--packages", "busybox-static", "-t", "deb:1")
    assert made == "deb:1\n"
    box = await real.client.sandbox(image="deb:1")
    done = await real.client.call(
        "POST", f"/sandboxes/{box['id']}/execute", json={"argv": ["busybox", "stat", "/bin/busybox"]}
    )
    assert done.json["exitCode"] == 0, done.json
    assert "no package" in await cli("build", f"debian:{suite}", "--packages", "x;id", "-t", "deb:2", fails=True)


def test_a_tool_that_is_missing_is_named(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path), "RUNRA_API_KEY": "rra_live_x"}
    for words, package in ((["."], "buildah"), (["debian:bookworm"], "mmdebstrap")):
        command = [sys.executable, "-m", "runra.cli", "image", "build", *words, "-t", "x:1"]
        done = subprocess.run(command, capture_output=True, env=environment, timeout=60)
        assert f"apt-get install {package}" in done.stderr.decode()
