"""Volumes on real sandboxes: they outlive everything, hold what they say, and are for whom they are meant."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from runra.contract import VolumeCreate, VolumeMount
from runra.contract.sandboxes import SandboxConfig
from runra.errors import RunraError
from runra.ids import new_id
from tests.hosting import NOTHING, Host, both_walls, need_wall, start_host, stop_host, until

ORGANIZATION = "org_test"
find = shutil.which


async def volume(host: Host, name: str = "data", **wanted: Any) -> str:
    volume_id = new_id("vol")
    await host.node.volumes.make(
        volume_id, ORGANIZATION, VolumeCreate(name=name, size_mb=wanted.pop("size_mb", 64), **wanted)
    )
    return volume_id


async def output(host: Host, sandbox: Any, command: str) -> str:
    return (await host.run(sandbox, command))[0]


async def test_a_volume_outlives_its_sandboxes_and_its_server(tmp_path: Path) -> None:
    host = await start_host(tmp_path / "data")
    try:
        made = await volume(host)
        first = await host.create(volumes=[{"name": "data", "path": "/deep/er/data"}])
        assert first.info().volumes == [{"id": made, "name": "data", "path": "/deep/er/data", "readOnly": False}]
        text = await output(
            host, first, "cd /deep/er/data && echo kept > f && chown 1000:1000 f && ln -s f l && stat -c %U:%a . f"
        )
        assert text == "root:755\nuser:644\n"
        # Folders on the way are there for everybody, not for root alone.
        assert await output(host, first, "stat -c %a /deep /deep/er") == "755\n755\n"
        await first.terminate()
        second = await host.create(volumes=[{"name": made, "path": "/data"}])
        assert await output(host, second, "cat /data/l; stat -c %U /data/f") == "kept\nuser\n"
    finally:
        await host.node.close()  # sandboxes live on
    host = await start_host(tmp_path / "data")
    try:
        adopted = host.node.sandboxes[second.id]
        assert adopted.info().volumes[0]["id"] == made
        with pytest.raises(RunraError, match=second.id) as held:
            host.node.volumes.delete(made)
        assert held.value.code == "INVALID_STATE"
        with pytest.raises(RunraError, match="one writer") as taken:
            await host.create(volumes=[{"name": "data", "path": "/data"}])
        assert taken.value.details["sandboxId"] == second.id
        await adopted.terminate()
    finally:
        await stop_host(host)
    host = await start_host(tmp_path / "data")
    try:
        third = await host.create(volumes=[{"name": "data", "path": "/data"}])
        assert await output(host, third, "cat /data/f") == "kept\n"
        await third.terminate()
        host.node.volumes.delete(made)
        await host.node.settled()
        assert list((tmp_path / "data/sandboxes/.volumes").iterdir()) == []
        with pytest.raises(RunraError, match="no volume 'data'"):
            await host.create(volumes=[{"name": "data", "path": "/data"}])
    finally:
        await stop_host(host)
    await until(lambda: host.left() == NOTHING)


@both_walls
async def test_one_writer_or_many_and_readers_always(host: Host) -> None:
    single, many = await volume(host, "single"), await volume(host, "many", access="many-writers")
    both = [{"name": "single", "path": "/single"}, {"name": "many", "path": "/many"}]
    writer = await host.create(volumes=both)
    with pytest.raises(RunraError, match="one writer") as refused:
        await host.create(volumes=[both[0]])
    assert refused.value.code == "INVALID_STATE"
    assert len(host.node.sandboxes) == 1, "nothing half made stays"
    other = await host.create(volumes=[{**both[0], "readOnly": True}, both[1]])
    await output(host, writer, "echo a > /single/f; echo b > /many/f")
    assert await output(host, other, "cat /single/f /many/f; echo c > /many/g") == "a\nb\n"
    assert await output(host, writer, "cat /many/g") == "c\n"
    # A paused sandbox still has its volumes.
    await writer.pause()
    with pytest.raises(RunraError, match="one writer"):
        await host.create(volumes=[both[0]])
    holders = (await host.node.volumes.info(single)).used_by
    assert sorted((it["sandboxId"], it["readOnly"]) for it in holders) == sorted([(writer.id, False), (other.id, True)])
    await writer.terminate()
    await host.create(volumes=[both[0]])
    with pytest.raises(RunraError, match="is used by"):
        host.node.volumes.delete(many)


async def test_its_size_holds_and_its_use_is_counted(host: Host) -> None:
    made = await volume(host, size_mb=32)
    assert (await host.node.volumes.info(made)).enforced == {"sizeMb": True}
    sandbox = await host.create(volumes=[{"name": "data", "path": "/data"}])
    said = await output(
        host, sandbox, "head -c 20M /dev/urandom > /data/f && sync && echo fits; head -c 100M /dev/urandom > /data/g"
    )
    assert said.startswith("fits\n")
    assert "quota" in said
    assert (
        await output(
            host, sandbox, "echo > /data/h; echo fine > /workspace/f && cat /workspace/f; cd /data; rm -f f g h; sync"
        )
        != ""
    )
    # The other sandboxes' disk is none of a volume's business.
    assert (await output(host, sandbox, "head -c 50M /dev/zero > /workspace/big && echo wrote")) == "wrote\n"
    await output(host, sandbox, "head -c 10M /dev/urandom > /data/f; sync")

    async def counted() -> bool:
        return 10 << 20 <= (await host.node.volumes.info(made)).used_bytes < 12 << 20

    await until(counted, timeout=40)  # as of the file system's last transaction


async def test_another_organization_has_no_such_volume(host: Host) -> None:
    made = await volume(host)
    config = {"image": "host", "volumes": [{"name": "data", "path": "/data"}]}
    errors = []
    for reference, organization in (("data", "org_other"), (made, "org_other"), ("never", ORGANIZATION)):
        config["volumes"] = [{"name": reference, "path": "/data"}]
        with pytest.raises(RunraError) as refused:
            await host.node.create(new_id("sb"), SandboxConfig.model_validate(config), organization)
        errors.append((refused.value.code, refused.value.message.replace(reference, "?"), refused.value.status))
    assert len(set(errors)) == 1
    assert not host.node.sandboxes


@pytest.mark.parametrize("wall", ["bubblewrap", "gvisor"])
async def test_it_is_no_way_out(host: Host, wall: str) -> None:
    """Read-only stays so; no device, no set-user-id program, no hard link from elsewhere."""
    need_wall(wall)
    made = await volume(host, access="many-writers")
    mounts = [{"name": "data", "path": "/data"}]
    writer = await host.create(isolation=wall, volumes=mounts)
    reader = await host.create(isolation=wall, volumes=[{**mounts[0], "readOnly": True}])
    await output(
        host,
        writer,
        "cp /bin/bash /data/shell; chmod 6755 /data/shell; chown 0:0 /data/shell; chmod 6755 /data/shell; mkdir -m 777 /data/d",
    )
    said = await output(
        host,
        reader,
        "echo no > /data/x; rm -f /data/shell; mkdir /data/y; mount -o remount,rw,bind /data; chmod 0 /data/d; chown 1 /data/d;"
        "python3 -c \"import ctypes; print(ctypes.CDLL(None).mount(b'none', b'/data', None, 4096 | 32, None))\" 2>&1;"
        "echo no > /data/x; ls /data",
    )
    assert said.splitlines()[-2:] == ["d", "shell"], said
    code = (
        "import os, stat\n"
        "for kind, number in ((stat.S_IFBLK, os.makedev(7, 0)), (stat.S_IFCHR, os.makedev(1, 1))):\n"
        "    try:\n"
        "        os.mknod('/data/node', kind | 0o666, number)\n"
        "        os.open('/data/node', os.O_RDWR)\n"
        "        print('opened')\n"
        "    except OSError as error: print('refused')\n"
        "try: os.link('/etc/shadow', '/data/link'); print('linked')\n"
        "except OSError: print('refused')\n"
    )
    assert await output(host, writer, f'python3 -c "{code}"') == "refused\n" * 3
    as_user = (await host.run(reader, "/data/shell -p -c 'id -u; id -ru'", user="1000"))[0]
    assert as_user.split()[0] == "1000", "set-user-id programs on a volume give nothing"
    # Outside nothing of it can be reached by anybody but root.
    folder = host.node.volumes.folder(made)
    assert folder.parent.stat().st_mode & 0o077 == 0
    assert host.node.settings.sandboxes_dir.stat().st_mode & 0o077 == 0


LINKS = """
    ln -s /proc /to-proc; mkdir /plain; ln -s / /plain/up; ln -s ../../.. /relative; echo > /file
    ln -s /oldroot/mnt /old; ln -s /newroot/dev /new; rm -rf /srv && ln -s /etc /srv
    rm -rf /usr/share/doc; ln -s /run /usr/share/doc; rm -rf /media && mkdir /media && ln -s /run/runra /media/here
"""


async def test_no_link_of_the_image_leads_a_mount_astray(host: Host) -> None:
    await volume(host, access="many-writers")
    evil = await host.create()
    await output(host, evil, LINKS + "rm -rf /home; mkdir /home; ln -s x /mnt/y; rm /mnt/y; mkdir /mnt/y")
    await host.node.snapshot(evil.id, new_id("snap"), "evil")
    for path in ("/to-proc", "/to-proc/1", "/plain/up", "/plain/up/etc/x", "/relative", "/file", "/file/x", "/old/agent", "/new", "/srv",
                 "/usr/share/doc", "/usr/share/doc/x", "/media/here", "/bin/x"):  # fmt: skip
        with pytest.raises(RunraError) as refused:
            await host.create(image="snapshot:evil", volumes=[{"name": "data", "path": path}])
        assert (refused.value.code, refused.value.details["field"]) == ("INVALID_REQUEST", "volumes"), path
    assert set(host.node.sandboxes) == {evil.id}
    # What is hidden by a folder above it is not in the way; neither is what is not there any more.
    fine = [{"name": "data", "path": path} for path in ("/home/user", "/mnt/y", "/usr/local/x", "/var/tmp/a/b")]
    for mount in fine:
        sandbox = await host.create(image="snapshot:evil", volumes=[mount])
        assert (
            await output(
                host, sandbox, f"echo {mount['path']} >> {mount['path']}/all; grep -c {mount['path']} /proc/mounts"
            )
        ) == "1\n"
        await sandbox.terminate()
    sandbox = await host.create(volumes=[{"name": "data", "path": "/data"}])
    assert await output(host, sandbox, "cat /data/all") == "".join(f"{it['path']}\n" for it in fine)


@pytest.mark.parametrize(
    "path",
    ["/", "//", "/proc", "/proc/1", "/dev/shm/x", "/sys", "/run", "/run/runra", "///run", "/./run/x", "/etc", "/usr", "/usr/bin/", "/lib64", "data", "/a/../proc", "/a\0b", ""],
)  # fmt: skip
def test_paths_that_are_the_sandboxs_own(path: str) -> None:
    with pytest.raises(ValidationError):
        VolumeMount(name="data", path=path)


def test_volumes_do_not_lie_in_each_other() -> None:
    for paths in (("/a", "/a"), ("/a", "/a/b"), ("/a/b/c", "/a/./b")):
        with pytest.raises(ValidationError, match="must not lie in another"):
            SandboxConfig.model_validate(
                {"image": "host", "volumes": [{"name": f"v{at}", "path": path} for at, path in enumerate(paths)]}
            )
    with pytest.raises(ValidationError, match="twice"):
        SandboxConfig.model_validate(
            {"image": "host", "volumes": [{"name": "v", "path": "/a"}, {"name": "v", "path": "/ab"}]}
        )


async def test_one_volume_by_name_and_id_is_still_one(host: Host) -> None:
    made = await volume(host)
    with pytest.raises(RunraError, match="given twice"):
        await host.create(volumes=[{"name": "data", "path": "/a"}, {"name": made, "path": "/b", "readOnly": True}])


#: What btrfs does for whoever may write to a folder of it, tried from inside. What is said: errno, 0 where it worked.
IOCTLS = """
import fcntl, os, struct
def ask(request, argument, path="/data"):
    fd = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        fcntl.ioctl(fd, request, argument)
        return 0
    except OSError as error:
        return error.errno
    finally:
        os.close(fd)
nested = bytearray(struct.pack("=q4088s", 0, b"nested"))
print(ask(0x5000940E, nested), ask(0x50009401, nested), ask(0x4008941A, struct.pack("=Q", 2)), ask(0xC0109428, bytes(16)))
open("/data/a", "w").write("shared" * 10000)
source = os.open("/data/a", os.O_RDONLY)
open("/data/b", "w").close()
print(ask(0x40049409, source, "/data/b"), open("/data/b").read() == open("/data/a").read())
"""


async def test_a_sandbox_tells_the_disk_nothing_but_files(host: Host) -> None:
    """A subvolume in a volume would have no quota, and a volume made read-only could not be deleted."""
    made = await volume(host)
    sandbox = await host.create(volumes=[{"name": "data", "path": "/data"}])
    assert await output(host, sandbox, f"python3 -c '{IOCTLS}'") == "25 25 25 25\n0 True\n"
    assert await output(host, sandbox, "ls /data; touch /data/c && echo fine") == "a\nb\nfine\n"
    await sandbox.terminate()
    host.node.volumes.delete(made)
    await host.node.settled()
    assert not list((host.node.settings.sandboxes_dir / ".trash").iterdir())


async def test_a_folder_that_cannot_be_moved_keeps_nobody_from_starting(tmp_path: Path) -> None:
    host = await start_host(tmp_path / "data")
    made = await volume(host)
    folder = host.node.volumes.folder(made)

    def read_only(flag: int) -> None:
        fd = os.open(folder, os.O_RDONLY)
        fcntl.ioctl(fd, 0x4008941A, struct.pack("=Q", flag))  # BTRFS_IOC_SUBVOL_SETFLAGS
        os.close(fd)

    read_only(2)
    host.node.volumes.delete(made)
    await host.node.close()
    host = await start_host(tmp_path / "data")
    read_only(0)
    await host.node.close()
    host = await start_host(tmp_path / "data")
    await host.node.settled()
    assert not folder.exists()
    await stop_host(host)


async def test_a_start_without_its_disk_image_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Volumes and snapshots lie in it: a server that went on without would call them gone, and hide them for good."""
    data, plain = tmp_path / "data", {"disk": "none", "allow_unenforced": frozenset({"disk"})}
    host = await start_host(data)
    await volume(host)
    sandbox = await host.create(volumes=[{"name": "data", "path": "/data"}])
    await output(host, sandbox, "echo kept > /data/f")
    await stop_host(host)
    host = await start_host(data, **plain)  # an operator's own wish; it leaves folders of the server's
    await stop_host(host)
    monkeypatch.setattr(shutil, "which", lambda name, **more: None if name == "mkfs.btrfs" else find(name, **more))
    host = await start_host(data)
    sandbox = await host.create(volumes=[{"name": "data", "path": "/data"}])
    assert await output(host, sandbox, "cat /data/f") == "kept\n"
    await stop_host(host)
    other = data / "sandboxes" / "sb_0000000000000000"
    other.mkdir()
    with pytest.raises(RunraError, match="without the disk image"):
        await start_host(data)
    other.rmdir()
    image = data / "disk.img"
    image.rename(data / "moved")
    image.write_bytes(b"no file system")
    with pytest.raises(RunraError, match="does not mount"):
        await start_host(data)
