"""Options: where they come from, which one counts, what is refused, and what is never shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runra.errors import RunraError
from runra.runtime import Runra, RunraOptions
from runra.runtime.config import masked, resolve
from runra.runtime.options import SandboxProviderConfig
from runra.runtime.registry import AGENTS, SANDBOX_PROVIDERS, Registry


@pytest.fixture
def user_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "user.json"
    monkeypatch.setenv("RUNRA_CONFIG_PATH", str(path))
    return path


def write(path: Path | str, **values: Any) -> None:
    Path(path).write_text(json.dumps(values))


def invalid(*args: Any, **kwargs: Any) -> RunraError:
    with pytest.raises(RunraError) as caught:
        resolve(*args, **kwargs)
    assert caught.value.code == "INVALID_CONFIG"
    return caught.value


def test_nothing_given() -> None:
    assert resolve().options == RunraOptions()
    assert resolve().options.sandbox.provider == "runra-sandbox"


def test_the_order_of_sources(monkeypatch: pytest.MonkeyPatch, user_file: Path) -> None:
    defaults = {"image": "user", "workdir": "/user", "timeoutMs": 1, "idleTimeoutMs": 1}
    write(user_file, sandbox={"defaults": defaults}, logLevel="debug", bootstrap={"dataDir": "/x"})
    write("runra.config.json", sandbox={"defaults": {"image": "project", "timeoutMs": 2, "idleTimeoutMs": 2}})
    monkeypatch.setenv("RUNRA_DEFAULT_IMAGE", "environment")
    monkeypatch.setenv("RUNRA_DEFAULT_TIMEOUT_MS", "3")
    monkeypatch.setenv("RUNRA_DEFAULT_CPU", "4")
    found = resolve({"sandbox": {"defaults": {"image": "constructor", "resources": {"memory_mb": 4096}}}})
    chosen = found.options.sandbox.defaults
    assert (chosen.image, chosen.timeout_ms, chosen.idle_timeout_ms, chosen.workdir) == ("constructor", 3, 2, "/user")
    assert chosen.resources is not None
    assert (chosen.resources.cpu, chosen.resources.memory_mb) == (4, 4096)
    assert found.options.log_level == "debug"
    assert found.sources["sandbox.defaults.image"] == "constructor"
    assert found.sources["sandbox.defaults.timeoutMs"] == "environment"
    assert found.sources["sandbox.defaults.idleTimeoutMs"].endswith("runra.config.json")
    assert found.sources["sandbox.defaults.workdir"] == str(user_file)


def test_toml_and_models_say_the_same() -> None:
    Path("runra.config.toml").write_text('[sandbox]\nprovider = "docker"\n[sandbox.config]\nurl = "unix:///x"\n')
    by_file = resolve().options
    Path("runra.config.toml").unlink()
    by_model = resolve(
        RunraOptions(sandbox=SandboxProviderConfig(provider="docker", config={"url": "unix:///x"}))
    ).options
    by_dict = resolve({"sandbox": {"provider": "docker", "config": {"url": "unix:///x"}}}).options
    assert by_file == by_model == by_dict


def test_two_project_files_are_an_error() -> None:
    write("runra.config.json")
    Path("runra.config.toml").write_text("")
    assert "keep one" in invalid().message


def test_one_provider_gets_nothing_of_another(user_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(user_file, apiKey="rra_live_user_key", apiUrl="http://user:1")
    write("runra.config.json", sandbox={"provider": "e2b", "apiKey": "e2b_project", "config": {"domain": "x"}})
    monkeypatch.setenv("RUNRA_API_KEY", "rra_live_environment")
    docker = resolve({"sandbox": "docker"}).options.sandbox
    assert (docker.provider, docker.api_key, docker.api_url, docker.config) == ("docker", None, None, {})
    e2b = resolve().options.sandbox
    assert (e2b.provider, e2b.api_key, e2b.api_url, e2b.config) == ("e2b", "e2b_project", None, {"domain": "x"})
    ours = resolve({"sandbox": "runra-sandbox"}).options.sandbox
    assert (ours.api_key, ours.api_url, ours.config) == ("rra_live_environment", "http://user:1", {})


def test_a_files_key_goes_to_that_files_address_alone(user_file: Path) -> None:
    write(user_file, apiKey="rra_live_secret_of_user", apiUrl="http://home:7747")
    write("runra.config.json", sandbox={"apiUrl": "http://elsewhere:1"})
    error = invalid()
    assert "elsewhere" in error.message
    assert "rra_live_secret_of_user" not in f"{error} {error.details}"
    write("runra.config.json", sandbox={"apiUrl": "http://home:7747"})
    assert resolve().options.sandbox.api_key == "rra_live_secret_of_user"


KEY = "rra_live_secret_of_user"
EVIL = "http://evil:1"
FOREIGN: list[dict[str, Any]] = [
    {"apiUrl": EVIL},
    {"sandbox": {"apiUrl": EVIL}},
    {"sandbox": {"config": {"apiUrl": EVIL}}},
    {"sandbox": {"apiUrl": EVIL, "apiKey": "its own, but the environment's is sent"}},
    {"sandbox": {"provider": "e2b", "apiUrl": EVIL}},
    {"sandbox": {"provider": "e2b", "apiUrl": EVIL, "apiKey": " "}},
    {"sandbox": {"provider": "e2b", "config": {"domain": "evil"}}},
    {"sandbox": {"provider": "e2b", "config": {"sandbox_url": EVIL}}},
    {"sandbox": {"provider": "cubesandbox", "config": {"masterUrl": EVIL}}},
    {"sandbox": {"provider": "docker", "config": {"url": "tcp://evil:1"}}},
    *(
        {"llm": {"provider": provider, "config": {"baseUrl": EVIL, "model": "m"}}}
        for provider in ("openai", "anthropic", "custom")
    ),
    {"llm": {"provider": "openai", "config": {"base_url": EVIL, "model": "m", "apiKeyEnv": "OPENAI_API_KEY"}}},
    {"observability": {"provider": "axiom", "url": EVIL}},
    {"observability": {"provider": "axiom", "url": EVIL, "token": ""}},
    {"observability": {"provider": "otel", "endpoint": EVIL}},
    {"observability": {"exporters": [{"provider": "console"}, {"provider": "langfuse", "config": {"host": EVIL}}]}},
    {"observability": {"provider": "postgres", "url": "postgresql://me@evil/db"}},
    {"observability": {"provider": "custom", "exporter": "evil:run"}},
    {"observability": {"provider": "jsonl", "path": "../outside.jsonl"}},
    {"observability": {"provider": "jsonl", "path": "~/outside.jsonl"}},
]


@pytest.fixture
def all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "RUNRA_API_KEY", "E2B_API_KEY", "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "AXIOM_TOKEN", "LANGFUSE_PUBLIC_KEY",
        "LANGFUSE_SECRET_KEY",
    ):  # fmt: skip
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization={KEY}")


@pytest.mark.usefixtures("all_keys")
@pytest.mark.parametrize("project", FOREIGN, ids=str)
def test_a_project_sends_the_users_keys_nowhere(
    project: dict[str, Any], user_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("runra.config.json", **project)
    error = invalid()
    assert "RUNRA_TRUST_PROJECT" in error.message
    assert KEY not in f"{error} {error.details}"
    resolve(config_file="runra.config.json")  # named: the caller's own word
    monkeypatch.setenv("RUNRA_TRUST_PROJECT", "1")
    resolve()
    monkeypatch.delenv("RUNRA_TRUST_PROJECT")
    write(user_file, trustedProjects=[str(Path.cwd() / "other")])
    invalid()
    write(user_file, trustedProjects=[str(Path.cwd())])
    resolve()


@pytest.mark.usefixtures("all_keys")
@pytest.mark.parametrize(
    "project",
    [
        {"sandbox": {"provider": "e2b", "apiUrl": EVIL, "apiKey": "theirs"}},
        {"sandbox": {"provider": "cubesandbox", "config": {"masterUrl": EVIL, "masterToken": "theirs"}}},
        {"llm": {"provider": "openai", "config": {"baseUrl": EVIL, "model": "m", "apiKey": "theirs"}}},
        {"observability": {"provider": "axiom", "url": EVIL, "token": "theirs"}},
        {"observability": {"provider": "otel", "endpoint": EVIL, "headers": {"a": "theirs"}}},
        {"observability": {"provider": "postgres", "url": "postgresql://me:theirs@evil/db"}},
        {"observability": {"provider": "jsonl", "path": "logs/events.jsonl"}},
        {"sandbox": {"provider": "docker", "config": {"url": "unix:///run/docker.sock"}}},
    ],
    ids=str,
)
def test_a_project_may_bring_its_own_key(project: dict[str, Any]) -> None:
    write("runra.config.json", **project)
    resolve()


def test_a_projects_key_is_no_licence_for_the_users_other_secrets(user_file: Path) -> None:
    write(user_file, sandbox={"provider": "cubesandbox", "config": {"masterToken": KEY}})
    write("runra.config.json", sandbox={"provider": "cubesandbox", "apiKey": "x", "config": {"masterUrl": EVIL}})
    assert "masterUrl" in invalid().details["field"]
    Path(user_file).unlink()
    resolve()


def test_an_address_of_the_project_that_is_overridden_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    write("runra.config.json", sandbox={"apiUrl": EVIL}, observability={"provider": "custom", "exporter": "evil:run"})
    monkeypatch.setenv("RUNRA_API_URL", "http://home:7747")
    found = resolve({"observability": "console"})
    assert found.options.sandbox.api_url == "http://home:7747"


@pytest.mark.parametrize(
    "shape",
    [
        {"provider": "console", "format": "json"},
        {"provider": "console", "config": {"format": "json"}},
        {"exporters": [{"provider": "console", "config": {"format": "json"}}]},
    ],
)
def test_observability_in_every_shape(shape: dict[str, Any]) -> None:
    found = resolve({"observability": shape}).options.observability
    assert found is not None
    assert [(one.provider, one.config) for one in found.exporters] == [("console", {"format": "json"})]


def test_a_mixture_of_shapes_is_refused() -> None:
    assert invalid({"observability": {"provider": "console", "exporters": []}}).details["field"] == "observability"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"sandbx": {}}, "sandbx"),
        ({"sandbox": {"provider": ""}}, "sandbox.provider"),
        ({"sandbox": {"defaults": {"cpu": 2}}}, "sandbox.defaults.cpu"),
        ({"sandbox": {"defaults": {"resources": {"cpu": "2"}}}}, "sandbox.defaults.resources.cpu"),
        ({"agent": {"config": {}}}, "agent.provider"),
        ({"logLevel": "loud"}, "logLevel"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, Any], field: str) -> None:
    assert invalid(values).details["field"] == field


def test_a_broken_file_and_a_broken_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("runra.config.json").write_text("{")
    assert "no JSON" in invalid().message
    Path("runra.config.json").unlink()
    assert "there is no" in invalid(config_file="/no/such/file").message
    monkeypatch.setenv("RUNRA_DEFAULT_CPU", "two")
    assert invalid().details["field"] == "RUNRA_DEFAULT_CPU"


def test_secrets_are_masked() -> None:
    shown = masked(
        {
            "sandbox": {"apiKey": "rra_live_0123456789abcdef", "config": {"masterToken": "short", "url": "http://x"}},
            "llm": {"config": {"apiKey": "sk-0123456789abcdef0123", "model": "m"}},
            "observability": {"exporters": [{"config": {"headers": {"Authorization": "Bearer 0123456789abcdef"}}}]},
        }
    )
    assert shown["sandbox"] == {"apiKey": "****cdef", "config": {"masterToken": "****", "url": "http://x"}}
    assert shown["llm"]["config"] == {"apiKey": "****0123", "model": "m"}
    assert "0123456789" not in json.dumps(shown)


def test_an_unknown_provider_is_an_error_before_anything_starts() -> None:
    with pytest.raises(RunraError, match="no sandbox provider 'dokcer'; known: cubesandbox, docker"):
        Runra(sandbox="dokcer")
    with pytest.raises(RunraError, match="there is no agent"):
        Runra(agent="claud")


def test_a_missing_package_names_what_to_install() -> None:
    registry: Registry[Any] = Registry("sandbox provider", "none", {"docker": "no_such_package_here:Provider"})
    with pytest.raises(RunraError, match=r"pip install 'runra\[docker\]'"):
        registry.create("docker")


def test_what_is_registered_wins_over_what_is_built_in() -> None:
    class Mine:
        id = "docker"

    try:
        Runra.register_sandbox_provider("docker", Mine)  # type: ignore[arg-type]
        Runra.register_agent_adapter("mine", Mine)  # type: ignore[arg-type]
        assert isinstance(SANDBOX_PROVIDERS.create("docker"), Mine)
        assert "mine" in AGENTS.names()
    finally:
        SANDBOX_PROVIDERS.unregister("docker")
        AGENTS.unregister("mine")


def test_a_plug_in_is_found_by_its_entry_point(tmp_path: Path) -> None:
    site = tmp_path / "site"
    info = site / "their_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "their_plugin.py").write_text("class Theirs:\n    id = 'theirs'\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[runra.sandbox_providers]\ntheirs = their_plugin:Theirs\ndocker = their_plugin:Theirs\n"
    )
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from runra.runtime.registry import SANDBOX_PROVIDERS as known\n"
        "print(known.create('theirs').id, known.factory('docker').__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split() == ["theirs", "DockerProvider"]  # what is built in is not replaced by what is installed


@pytest.mark.parametrize(("group", "known"), [("agents", "AGENTS"), ("llms", "LLMS"), ("exporters", "EXPORTERS")])
def test_each_kind_has_its_entry_points(tmp_path: Path, group: str, known: str) -> None:
    site = tmp_path / "site"
    info = site / "their_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "their_plugin.py").write_text(
        "class Theirs:\n    id = name = 'theirs'\n    async def export(self, events): pass\n"
    )
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[runra.{group}]\ntheirs = their_plugin:Theirs\ncustom = no_such:One\n")
    option = {"agents": "agent", "llms": "llm", "exporters": "observability"}[group]
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        f"from runra.runtime import Runra\nfrom runra.runtime.registry import {known} as known\n"
        f"Runra({option}='theirs')\n"
        "known.factory('custom')  # what is built in: theirs could not be imported\n"
        "print(known.create('theirs').id)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30)
    assert done.stdout.split() == ["theirs"], done.stderr


def test_importing_is_quick_and_brings_no_library() -> None:
    program = (
        "import runra.runtime, sys; print([n for n in ('pydantic', 'aiohttp', 'aiodocker', 'e2b') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
