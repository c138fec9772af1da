"""Images from a real registry, and sandboxes made of them."""

from __future__ import annotations

import asyncio
import os
import tarfile
from pathlib import Path

import pytest

from runra.node.agent.types import ExecSpec
from runra.node.settings import RegistrySettings
from tests.hosting import Host, hosted, until
from tests.images import oci
from tests.images.conftest import ORGANIZATION, layer_folders, leftovers, pull, refused
from tests.images.oci import Layer, busybox, image, index
from tests.images.registries import RealRegistry, certificates, real_registry


async def test_an_image_is_pulled_and_runs(registry: RealRegistry, host: Host) -> None:
    name = registry.push(
        image(
            busybox("pwd"),
            Layer().folder("etc").add("etc/motd", b"hello\n", uid=1000, gid=1000, mode=0o640),
            Env=["GREETING=hi", "PATH=/bin"],
            User="nobody",
            WorkingDir="/srv",
            Entrypoint=["/bin/false"],
            Cmd=["x"],
            Labels={"a": "b"},
        ),
        "team/app:1",
    )
    made = await pull(host, name)
    assert (made.user, made.workdir, made.entrypoint, made.cmd) == ("nobody", "/srv", ["/bin/false"], ["x"])
    assert (made.layers, made.platform, made.labels) == (2, f"linux/{oci.ARCHITECTURE}", {"a": "b"})
    sandbox = await host.create(image=name, env={"MORE": "1"})
    out, exit = await host.run(
        sandbox, "cat /etc/motd; echo $GREETING $MORE $PATH; stat -c '%u %g %a' /etc/motd; id -u"
    )
    assert out == "hello\nhi 1 /bin\n1000 1000 640\n0\n"
    assert exit.code == 0
    # What is written goes into the sandbox's own layer, and the next one starts afresh.
    await host.run(sandbox, "echo changed > /etc/motd; rm /bin/pwd")
    other = await host.create(image=name)
    assert (await host.run(other, "cat /etc/motd; test -e /bin/pwd && echo there"))[0] == "hello\nthere\n"
    assert [event.type for event in host.events if event.type == "image.ready"] == ["image.ready"]
    assert leftovers(host) == []


async def test_what_a_sandbox_needs_is_there_whatever_the_image_has(registry: RealRegistry, host: Host) -> None:
    name = registry.push(
        image(Layer().folder("bin").add("bin/busybox", oci.BUSYBOX.read_bytes(), mode=0o755)), "bare:1"
    )
    await pull(host, name)
    sandbox = await host.create(image=name)
    async with sandbox.use() as agent:

        async def run(*argv: str) -> tuple[str, int | None]:
            process = await agent.exec(ExecSpec(argv=("/bin/busybox", *argv), env=sandbox.env, cwd="/"))
            parts = [chunk.data async for chunk in process.output()]
            return b"".join(parts).decode(), (await process.wait()).code

        assert (await run("ls", "/"))[0].split() == sorted(
            "bin dev etc home mnt opt proc root run srv sys tmp usr var workspace".split()
        )
        assert await run("stat", "-c", "%a", "/tmp", "/workspace", "/root") == ("1777\n755\n700\n", 0)
        assert (await run("cat", "/etc/passwd"))[0].startswith("root:x:0:0:")
        assert (await run("test", "-c", "/dev/null"))[1] == 0
        # No shell: a command says so, and does not hang.
        process = await agent.exec(ExecSpec(command="echo hi", env=sandbox.env, cwd="/"))
        assert (await process.wait()).code == 127


@pytest.mark.parametrize("how", ["", "gzip", "zstd"])
async def test_layers_in_every_compression(registry: RealRegistry, host: Host, how: str) -> None:
    name = registry.push(image(busybox(), Layer().add("data", b"x" * 300_000), how=how), f"packed:{how or 'plain'}")
    await pull(host, name)
    sandbox = await host.create(image=name)
    assert (await host.run(sandbox, "stat -c %s /data"))[0] == "300000\n"


async def test_whiteouts_and_opaque_folders_hide_what_lies_below(registry: RealRegistry, host: Host) -> None:
    below = Layer().folder("etc").add("etc/gone", b"").add("etc/stays", b"")
    below.folder("old").add("old/a", b"").folder("old/sub").folder("replaced").add("replaced/below", b"")
    above = Layer().add("etc/.wh.gone").add("old/.wh..wh..opq").add("old/b", b"")
    above.add(".wh.replaced").folder("replaced").add("replaced/above", b"")
    name = registry.push(image(busybox(), below, above), "whiteouts:1")
    await pull(host, name)
    sandbox = await host.create(image=name)
    assert (await host.run(sandbox, "ls /etc/gone; ls /etc/stays /old /replaced"))[0].split("\n") == [
        *("ls: /etc/gone: No such file or directory", "/etc/stays", "", "/old:", "b", "", "/replaced:", "above", "")
    ]
    # A sandbox makes such itself when it deletes, and may put things there again.
    assert (await host.run(sandbox, "rm -r /old; mkdir /old; ls /old; touch /etc/gone; ls /etc/gone"))[
        0
    ] == "/etc/gone\n"


async def test_owners_modes_links_and_attributes(registry: RealRegistry, host: Host) -> None:
    layer = Layer().folder("srv", 0o2775, uid=7, gid=8).add("srv/set", b"x", mode=0o4755, uid=3, gid=4, mtime=1_000_000)
    layer.link("srv/hard", "srv/set", hard=True).link("srv/soft", "set", uid=5, gid=6).link("srv/away", "/etc/passwd")
    layer.add("srv/pipe", kind=tarfile.FIFOTYPE, mode=0o600).add("srv/far", b"", uid=3_000_000, gid=1)
    layer.add("srv/" + "n" * 200, b"long").add("srv/ünï\udcff", b"")
    layer.add("srv/noted", b"", pax_headers={"SCHILY.xattr.user.note": "kept", "SCHILY.xattr.trusted.bad": "no"})
    name = registry.push(image(busybox(), layer), "owners:1")
    await pull(host, name)
    sandbox = await host.create(image=name)
    out = (
        await host.run(sandbox, "cd /srv; stat -c '%n %u %g %a %h %Y' . set hard; stat -c '%n %u %g %F' soft pipe far")
    )[0]
    assert out.splitlines()[1:] == [
        *("set 3 4 4755 2 1000000", "hard 3 4 4755 2 1000000", "soft 5 6 symbolic link", "pipe 0 0 fifo"),
        "far 65534 1 regular empty file",
    ]
    assert out.splitlines()[0].startswith(". 7 8 2775 ")
    assert (await host.run(sandbox, "cat /srv/nnnn*"))[0] == "long"
    noted = next(path / "srv/noted" for path in layer_folders(host) if (path / "srv/noted").exists())
    assert os.getxattr(noted, "user.note") == b"kept"
    assert os.listxattr(noted) == ["user.note"]


async def test_a_create_pulls_once_however_many_ask(registry: RealRegistry, tmp_path: Path) -> None:
    name = registry.push(image(busybox()), "asked:1")
    private = {registry.host: RegistrySettings(private=True)}
    async with hosted(tmp_path / "data", registries=private) as host:
        sandboxes = await asyncio.gather(*(host.create(image=name) for _ in range(5)))
        assert {(await host.run(sandbox, "echo $0"))[1].code for sandbox in sandboxes} == {0}
        assert len([event for event in host.events if event.type == "image.ready"]) == 1


async def test_a_create_reaches_no_private_address_by_itself(registry: RealRegistry, host: Host) -> None:
    name = registry.push(image(busybox()), "internal:1")
    error = await refused(host.create(image=name))
    assert error.code == "INVALID_REQUEST"
    assert "no public address" in error.message
    # localhost, which is a name and not an address.
    error = await refused(host.create(image=name.replace("127.0.0.1", "localhost")))
    assert "no public address" in error.message
    await pull(host, name)
    await host.create(image=name)


async def test_an_operator_forbids_pulls_on_create(registry: RealRegistry, tmp_path: Path) -> None:
    name = registry.push(image(busybox()), "forbidden:1")
    async with hosted(tmp_path / "data", pull_on_create=False) as host:
        error = await refused(host.create(image=name))
        assert (error.code, "runra image pull" in error.message) == ("INVALID_REQUEST", True)
        await pull(host, name)
        await host.create(image=name)


async def test_a_private_image_is_its_organizations_own(tmp_path: Path) -> None:
    login = ("robot", "s3cret-of-robot")
    with real_registry(tmp_path / "registry", login=login) as registry:
        made = image(busybox(), Layer().add("secret", b"ours"))
        name = registry.push(made, "team/private:1")
        async with hosted(tmp_path / "data") as host:
            for wrong in (None, ("robot", "guess")):
                error = await refused(pull(host, name, login=wrong))
                assert (error.code, error.details["status"]) == ("INVALID_REQUEST", 401)
                assert "guess" not in str(error)
            await pull(host, name, login=login, organization="org_ours")
            assert host.node.images.listed("org_other") == []
            assert (await refused(pull(host, name, organization="org_other"))).details["status"] == 401
            error = await refused(host.create(image=name))  # org_test, which is another one
            assert error.code == "INVALID_REQUEST"
            assert [image.shared for image in host.node.images.listed("org_ours")] == [False]
        # Nothing of the login stays, in records, events or anywhere else below the data folder.
        for path in (tmp_path / "data").rglob("*"):
            if path.is_file() and path.stat().st_size < 1 << 20:
                assert b"s3cret-of-robot" not in path.read_bytes(), path
        assert all("s3cret" not in event.model_dump_json() for event in host.events)


async def test_tls_with_an_authority_of_its_own(tmp_path: Path) -> None:
    tls = certificates(tmp_path / "tls")
    with real_registry(tmp_path / "registry", tls=tls) as registry:
        name = registry.push(image(busybox()), "over/tls:1")
        async with hosted(tmp_path / "strict") as host:
            error = await refused(pull(host, name))
            assert "certificate is not trusted" in error.message
            assert "caFile" in error.message
        for settings in (RegistrySettings(ca_file=tls[0]), RegistrySettings(insecure=True)):
            async with hosted(tmp_path / f"data-{settings.insecure}", registries={registry.host: settings}) as host:
                await pull(host, name)


async def test_a_login_over_tls(tmp_path: Path) -> None:
    tls, login = certificates(tmp_path / "tls"), ("robot", "s3cret-of-robot")
    with real_registry(tmp_path / "registry", tls=tls, login=login) as registry:
        name = registry.push(image(busybox()), "team/private:1")
        async with hosted(tmp_path / "data", registries={registry.host: RegistrySettings(ca_file=tls[0])}) as host:
            assert (await refused(pull(host, name))).details["status"] == 401
            await pull(host, name, login=login)


async def test_a_mirror_is_asked_first(registry: RealRegistry, tmp_path: Path) -> None:
    registry.push(image(busybox()), "library/tool:1")
    mirrors = {
        "nowhere.invalid": RegistrySettings(mirrors=("http://127.0.0.1:1", registry.url)),
        "docker.io": RegistrySettings(mirrors=(registry.url,)),
    }
    async with hosted(tmp_path / "data", registries=mirrors) as host:
        await pull(host, "nowhere.invalid/library/tool:1")
        # A tenant's create comes this way too: where a mirror is, the operator has said.
        await host.create(image="tool:1")
        assert [one.reference for one in host.node.images.listed(ORGANIZATION)] == [
            "tool:1",
            "nowhere.invalid/library/tool:1",
        ]


async def test_an_index_gives_this_machines_image(registry: RealRegistry, host: Host) -> None:
    other = "arm64" if oci.ARCHITECTURE != "arm64" else "amd64"
    ours = image(busybox(), Layer().add("which", b"ours"))
    theirs = image(Layer().add("which", b"theirs"), architecture=other)
    both = index(**{other: theirs, oci.ARCHITECTURE: ours})
    name = registry.push(both, "multi:1")
    made = await pull(host, name)
    assert made.digest == both.digest
    sandbox = await host.create(image=name)
    assert (await host.run(sandbox, "cat /which"))[0] == "ours"
    by_digest = f"{registry.host}/multi@{both.digest}"
    assert (await pull(host, by_digest)).reference == by_digest
    error = await refused(pull(host, registry.push(index(**{other: theirs}), "multi:foreign")))
    assert other in error.message
    assert "not made for this machine" in error.message


async def test_layers_are_shared_and_go_when_nobody_needs_them(registry: RealRegistry, host: Host) -> None:
    base = busybox()
    blob = base.bytes()
    first = registry.push(image(blob, Layer().add("a", b"a")), "shared:a")
    second = registry.push(image(blob, Layer().add("b", b"b")), "shared:b")
    await pull(host, first)
    await pull(host, second)
    assert len(layer_folders(host)) == 3
    images = host.node.images
    sandbox = await host.create(image=first)
    await images.delete(first, ORGANIZATION)
    assert len(layer_folders(host)) == 3  # the sandbox stands on them
    assert (await host.run(sandbox, "cat /a"))[0] == "a"
    assert (await refused(host.create(image=first))).code == "INVALID_REQUEST"
    await sandbox.terminate()
    await until(lambda: len(layer_folders(host)) == 2)
    assert (await images.prune(ORGANIZATION, 3_600_000)).references == []
    pruned = await images.prune(ORGANIZATION, 0)
    assert pruned.references == [f"{registry.host}/shared:b"]
    assert pruned.freed_bytes > 1 << 20
    await images.layers.settled()
    assert layer_folders(host) == []


async def test_a_tag_that_moved_is_refreshed_and_running_sandboxes_keep_theirs(
    registry: RealRegistry, host: Host
) -> None:
    name = registry.push(image(busybox(), Layer().add("v", b"1")), "moving:latest")
    await pull(host, name)
    old = await host.create(image=name)
    registry.push(image(busybox(), Layer().add("v", b"2")), "moving:latest")
    assert (await host.run(await host.create(image=name), "cat /v"))[0] == "1"  # as it is here
    await pull(host, name)
    assert (await host.run(await host.create(image=name), "cat /v"))[0] == "2"
    assert (await host.run(old, "cat /v"))[0] == "1"


async def test_a_sandbox_is_adopted_after_its_image_is_gone(registry: RealRegistry, tmp_path: Path) -> None:
    from tests.hosting import start_host, stop_host

    name = registry.push(image(busybox(), Layer().add("kept", b"yes"), Env=["FROM_IMAGE=1"]), "adopted:1")
    first = await start_host(tmp_path / "data")
    await pull(first, name)
    sandbox = await first.create(image=name)
    await first.node.images.delete(name, ORGANIZATION)
    await first.node.close()
    second = await start_host(tmp_path / "data")
    try:
        adopted = second.node.sandboxes[sandbox.id]
        assert (await second.run(adopted, "cat /kept; echo $FROM_IMAGE"))[0] == "yes1\n"
        assert len(layer_folders(second)) == 2
    finally:
        await stop_host(second)
    assert layer_folders(second) == []
