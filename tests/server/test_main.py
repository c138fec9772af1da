"""Starting and stopping: locks, ports, the first key, the clients' configuration."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from runra.errors import RunraError
from runra.server import descriptors
from runra.server.bootstrap import note
from runra.server.main import bound, locked
from runra.server.settings import ServerSettings

from .conftest import started

_SERVE = """
import logging, sys
from pathlib import Path
from runra.server.main import serve
from runra.server.settings import ServerSettings
from tests.server.fake import Node
logging.basicConfig(level=logging.INFO)
folder = Path(sys.argv[1])
settings = ServerSettings(port=int(sys.argv[2]), data_dir=folder, client_config=folder / "c" / "config.json", shutdown_s=2)
serve(settings, lambda given, events: Node(folder / "world", events, {}))
"""


def _serve(folder: Path, port: int = 0, before: Sequence[str] = ()) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}"}
    return subprocess.Popen(
        [*before, sys.executable, "-c", _SERVE, str(folder), str(port)],
        env=environment,
        cwd=root,
        stderr=subprocess.PIPE,
        text=True,
    )


def _until_up(process: subprocess.Popen[str], folder: Path) -> dict[str, str]:
    config = folder / "c" / "config.json"
    for _ in range(300):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        if config.exists():
            content = json.loads(config.read_text())
            try:
                with urllib.request.urlopen(f"{content['apiUrl']}/v1/health", timeout=1):
                    return dict(content)
            except OSError:
                pass
        time.sleep(0.05)
    raise AssertionError("the server did not come up")


def test_serve_from_start_to_sigterm(data_dir: Path) -> None:
    process = _serve(data_dir)
    try:
        content = _until_up(process, data_dir)
        key = (data_dir / "bootstrap-key").read_text().strip()
        assert content["apiKey"] == key
        for path, mode in (("bootstrap-key", 0o600), ("c/config.json", 0o600), ("c", 0o700), ("runra.db", 0o600)):
            assert stat.S_IMODE((data_dir / path).stat().st_mode) == mode, path
        second = _serve(data_dir)
        _, said = second.communicate(timeout=20)
        assert second.returncode != 0
        assert "in use by another server" in said
        port = int(content["apiUrl"].rpartition(":")[2])
        third = _serve(data_dir / "other", port)
        _, said = third.communicate(timeout=20)
        assert f"port {port} on 127.0.0.1" in said
        request = urllib.request.Request(f"{content['apiUrl']}/v1/events", headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request, timeout=10) as stream:
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert stream.read() in (b"", b": keep-alive\n\n")
        assert process.wait(10) == 0
        assert time.monotonic() - began < 3
    finally:
        process.kill()
        _, said = process.communicate()
    assert key not in said
    assert "Traceback" not in said


def test_more_connections_than_the_soft_limit_of_files(data_dir: Path) -> None:
    """Login shells and systemd give 1024, and a sandbox's connections alone could take those."""
    process = _serve(data_dir, before=["prlimit", "--nofile=128:4096"])
    try:
        url = _until_up(process, data_dir)["apiUrl"]
        with contextlib.ExitStack() as opened:
            for _ in range(200):
                at = ("127.0.0.1", int(url.rpartition(":")[2]))
                opened.enter_context(contextlib.closing(socket.create_connection(at, timeout=5)))
            with urllib.request.urlopen(f"{url}/v1/health", timeout=5) as answer:
                assert answer.status == 200
    finally:
        process.kill()
        process.communicate()


def test_one_sandboxs_connections_get_a_share_of_the_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, before[1]))
        assert (descriptors.bounded(512, each=1), descriptors.bounded(1024, each=2)) == (128, 64)
        assert descriptors.take_all() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == before[1]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert descriptors.bounded(10, each=2) == 10


def test_a_lock_is_held_once(tmp_path: Path) -> None:
    with locked(tmp_path / "data"), pytest.raises(RunraError, match="in use") as refused, locked(tmp_path / "data"):
        pass
    assert refused.value.code == "INVALID_CONFIG"
    with locked(tmp_path / "data"):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(RunraError, match="--data-dir"), locked(tmp_path / "file"):
        pass


def test_a_taken_port_and_a_bad_host_are_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(RunraError, match="--port"):
            bound("127.0.0.1", other.getsockname()[1])
    with pytest.raises(RunraError, match="--host"):
        bound("no.such.host.invalid", 0)
    with pytest.raises(RunraError):
        bound("192.0.2.1", 0)


async def test_the_first_key_is_made_once(settings: ServerSettings) -> None:
    async with started(settings) as run:
        key = run.client.key
        assert (await run.client.call("GET", "/api-keys")).json["data"][0]["scopes"] == sorted(
            ["sandbox:*", "billing:read", "billing:manage", "webhooks:manage", "admin:*"]
        )
        made = await run.client.new_key(profile="full")
        listed = (await run.client.call("GET", "/api-keys")).json["data"]
    async with started(settings) as run:
        assert run.client.key == key
        assert len((await run.client.call("GET", "/api-keys")).json["data"]) == len(listed)
        own = next(it["id"] for it in listed if it["name"] == "bootstrap")
        await run.client.with_key(made["key"]).call("DELETE", f"/api-keys/{own}")
    assert settings.client_config is not None
    settings.client_config.unlink()
    async with started(settings) as run:
        assert (await run.client.call("GET", "/sandboxes")).status == 401
        assert not settings.client_config.exists()  # a key that opens nothing is not handed on


def test_the_clients_configuration(tmp_path: Path) -> None:
    config, data = tmp_path / "home" / "config.json", tmp_path / "data"
    data.mkdir()
    note(config, data, "http://a", "key1")
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700
    config.write_text(json.dumps({**json.loads(config.read_text()), "defaults": {"image": "x"}}))
    note(config, data, "http://b", "key2")
    content = json.loads(config.read_text())
    assert (content["apiUrl"], content["apiKey"], content["defaults"]) == ("http://b", "key2", {"image": "x"})
    # Another local server, whose folder still holds the key: its note stays.
    (data / "bootstrap-key").write_text("key2\n")
    other = tmp_path / "other"
    other.mkdir()
    note(config, other, "http://c", "key3")
    assert json.loads(config.read_text())["apiKey"] == "key2"
    # That folder is gone: the note points nowhere and is replaced.
    (data / "bootstrap-key").unlink()
    note(config, other, "http://c", "key3")
    assert json.loads(config.read_text())["apiKey"] == "key3"
    # A key somebody put there by hand, and a file that is no JSON, stay.
    for text in ('{"apiKey": "theirs"}', "not json", "[]"):
        config.write_text(text)
        note(config, other, "http://d", "key4")
        assert config.read_text() == text
    config.write_text('{"logLevel": "debug"}')
    note(config, other, "http://d", "key4")
    assert json.loads(config.read_text())["apiKey"] == "key4"


def test_urls() -> None:
    base = ServerSettings(port=80)
    assert replace(base, host="0.0.0.0").url == "http://127.0.0.1:80"
    assert replace(base, host="::").url == "http://[::1]:80"
    assert replace(base, host="fe80::1").url == "http://[fe80::1]:80"
    assert replace(base, api_url="https://x").url == "https://x"
