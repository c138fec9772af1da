"""The whole way, as a user goes it: a served API, the SDK and the command line, on the machine with its own internet."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runra import Runra, RunraError
from tests.network.internet import DNS, GOOD, OTHER, PRIVATE, Internet

KEY = "sk-served-0123456789"


class Served:
    """A server in a process of its own, and its command line."""

    def __init__(self, home: Path) -> None:
        self.environment = {**os.environ, "HOME": str(home), "RUNRA_CONFIG_PATH": str(home / "config.json")}
        self.environment.pop("RUNRA_API_URL", None)
        self.environment["MODEL_KEY"] = KEY
        self.url = ""

    def cli(self, *words: str) -> str:
        command = [sys.executable, "-m", "runra.cli", *words]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stderr)
        return done.stdout.strip()


@pytest.fixture(scope="module")
def served(internet: Internet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("home")
    found = Served(home)
    # The gateway must trust the test's authority, as it would trust the system's.
    found.environment["SSL_CERT_FILE"] = str(internet.ca)
    command = [sys.executable, "-m", "runra.cli", "serve", "--port", "0", "--data-dir", str(home / "data")]
    command += ["--dns", DNS, "--open-range", "10.9.9.0/24@org_nobody", "--allow-unenforced", "all"]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(command, env=found.environment, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while (
            not (match := re.search(r"Runra at (\S+)", (home / "log").read_text()))
            or not (home / "config.json").exists()
        ):
            assert time.monotonic() < deadline, (home / "log").read_text()
            assert process.poll() is None, (home / "log").read_text()
            time.sleep(0.05)
        found.url = match[1]
        found.environment["RUNRA_API_URL"] = found.url
        yield found
        assert KEY not in (home / "log").read_text()
        found.cli("rm", "--all")
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture
def client(served: Served) -> Iterator[Runra]:
    config = json.loads(Path(served.environment["RUNRA_CONFIG_PATH"]).read_text())
    deadline = time.monotonic() + 20
    while True:
        try:
            with Runra(api_key=config["apiKey"], api_url=served.url) as found:
                found.sandboxes.list()
                yield found
            return
        except RunraError as error:
            if error.code != "NETWORK_ERROR" or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


REACH = "python3 -c 'import urllib.request as u, sys; print(u.urlopen(sys.argv[1], timeout=3).read().decode())' {} 2>&1"


def test_with_the_sdk(client: Runra, internet: Internet) -> None:
    internet.clear()
    secret = {"alias": "model", "host": "model.example", "header": "x-api-key", "value": KEY}
    network: dict[str, Any] = {"egress": {"allow": ["good.example"]}, "secrets": [secret]}
    with client.sandboxes.create(image="host", network=network) as sandbox:
        assert sandbox.network.egress is not None
        assert (sandbox.network.egress.allow, sandbox.network.egress.default) == (["good.example"], "deny")
        assert sandbox.network.secrets[0].alias == "model"
        assert KEY not in sandbox.info.model_dump_json()
        assert GOOD in sandbox.exec(REACH.format("http://good.example/")).stdout
        assert "Error" in sandbox.exec(REACH.format("http://evil.example/")).stdout
        assert OTHER in sandbox.exec(REACH.format("http://model.gateway.runra.internal/")).stdout
        assert internet.at(OTHER, "http")[0].more["headers"]["x-api-key"] == KEY
        sandbox.update_network(egress={"default": "allow"})
        assert sandbox.network.egress.default == "allow"
        assert not sandbox.network.secrets
        assert "93.184.216.11" in sandbox.exec(REACH.format("http://evil.example/")).stdout
        assert "Error" in sandbox.exec(REACH.format(f"http://{PRIVATE}/")).stdout
        with pytest.raises(RunraError) as caught:
            sandbox.update_network(egress={"allow": ["https://x"]})
        assert (caught.value.code, caught.value.details["field"]) == ("INVALID_CONFIG", "network.egress.allow")
        listed = client.sandboxes.get(sandbox.id)
        assert listed.network.egress is not None
        assert listed.network.egress.default == "allow"
    stored = client.sandboxes.get(sandbox.id)
    assert KEY not in stored.info.model_dump_json()


@pytest.mark.parametrize(
    "secrets",
    [
        [KEY],
        [{"alias": "a", "host": "b.example", "value": KEY + "\n"}],
        [{"alias": KEY * 9, "value": KEY, KEY: 1}],
        KEY,
    ],
)
def test_a_refused_secret_is_not_repeated(client: Runra, served: Served, secrets: Any) -> None:
    import urllib.error
    import urllib.request

    config = json.loads(Path(served.environment["RUNRA_CONFIG_PATH"]).read_text())
    body = json.dumps({"image": "host", "network": {"secrets": secrets}}).encode()
    headers = {"Authorization": f"Bearer {config['apiKey']}", "Content-Type": "application/json"}
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{served.url}/v1/sandboxes", body, headers))
    answer = caught.value.read().decode()
    assert caught.value.code == 400
    assert f'"{KEY}' not in answer.replace(f"secrets.0.{KEY}", "")
    assert "'" + KEY not in answer


def test_with_the_command_line(client: Runra, served: Served, internet: Internet) -> None:
    internet.clear()
    said = served.cli(
        "run", "--allow", "good.example", "--secret", "m=model.example,x-api-key,Key MODEL_KEY", "--",
        "sh", "-c", REACH.format("http://good.example/") + ";" + REACH.format("http://m.gateway.runra.internal/"),
    )  # fmt: skip
    assert GOOD in said
    assert internet.at(OTHER, "http")[0].more["headers"]["x-api-key"] == f"Key {KEY}"
    sandbox_id = served.cli("create", "--egress", "deny")
    assert json.loads(served.cli("network", sandbox_id))["egress"]["default"] == "deny"
    assert json.loads(served.cli("network", sandbox_id, "--allow", "good.example"))["egress"]["allow"] == [
        "good.example"
    ]
    assert GOOD in served.cli("exec", sandbox_id, "sh", "-c", REACH.format("http://good.example/"))
    served.cli("rm", sandbox_id)


def test_its_events_reach_a_client(client: Runra) -> None:
    policy = {"egress": {"allow": ["good.example"]}}
    with (
        client.sandboxes.create(image="host", network=policy) as sandbox,
        sandbox.events(after="evt_0") as events,
    ):
        sandbox.exec(REACH.format("http://evil.example/"))
        told = next(event for event in events if event.type == "network.egress")
        assert (told.data["host"], told.data["allowed"], told.data["state"]) == ("evil.example", False, "refused")
