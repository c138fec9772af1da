"""Starting one sandbox: its disk, its groups, its network with the policy in force, its identity, and then its wall."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from runra.node.cgroups import Limits
from runra.node.disk import Disk
from runra.node.identity import give_identity
from runra.node.isolation import Box, BoxVolume, Isolation
from runra.node.mountpoint import check_mount_point
from runra.node.network.host import HostNetwork
from runra.node.networking import placed
from runra.node.sandbox import Sandbox
from runra.node.volumes import Volumes


async def start(
    sandbox: Sandbox,
    isolation: Isolation,
    disk: Disk,
    network: HostNetwork | None,
    volumes: Volumes,
    max_pids: int,
) -> None:
    """Returns when it is running. What is half made when this raises, its owner clears away."""
    record, folder = sandbox.record, sandbox.folder
    limits = record.config.resources
    if record.root.start_from is None:
        disk.make(folder, limits.disk_mb)
    else:
        await disk.clone(record.root.start_from, folder, limits.disk_mb)
        record.inherited_bytes = max(0, record.root.start_bytes - await disk.used(folder))
    record.save(sandbox.record_path)
    processes = isolation.host_processes(max_pids)
    sandbox.cgroup.create(Limits(limits.cpu, limits.memory_mb, processes), as_one=isolation.one_memory)
    async with placed(sandbox, isolation, network) as place:
        with _listen(sandbox.socket_path) as listen:
            box = Box(
                id=record.id,
                folder=folder,
                root=record.root,
                cgroup=sandbox.cgroup,
                listen=listen,
                memory_mb=limits.memory_mb,
                first_id=record.first_id,
                netns=place.netns if place else None,
                volumes=tuple(BoxVolume(volumes.folder(one.id), one.path, one.read_only) for one in record.volumes),
            )
            isolation.prepare(box)
            give_identity(folder / "upper0", record.id, place.gateway if place else None)
            for volume in box.volumes:
                check_mount_point(record.root, folder, volume.path)
            pid = await isolation.start(box)
    await sandbox.started(pid)


def _listen(path: Path) -> socket.socket:
    """The agent's listening socket. Its folder is opened first: a socket address holds 108 bytes, a path may not."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        listening.bind(f"/proc/self/fd/{folder}/{path.name}")
        path.chmod(0o600)
        listening.listen(8)
    except BaseException:
        listening.close()
        raise
    finally:
        os.close(folder)
    return listening
