"""Where URL and key come from, and where the key never goes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import runra
from runra import AsyncRunra, Runra, RunraError
from runra.sdk.settings import Settings, resolve
from tests.sdk.wire import Wire

KEY, OTHER = "rra_live_aaaaaaaaaaaaaaaaaaaaaaaa1234", "rra_test_bbbbbbbbbbbbbbbbbbbb5678"


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    path = tmp_path / "config.json"
    monkeypatch.setenv("RUNRA_CONFIG_PATH", str(path))
    return lambda content: path.write_text(content if isinstance(content, str) else json.dumps(content))


def test_defaults() -> None:
    found = resolve()
    assert (found.api_url, found.api_key, found.timeout_ms, found.max_retries) == (
        "http://127.0.0.1:7747", None, 30_000, 2,
    )  # fmt: skip


def test_constructor_over_environment_over_file(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config({"apiUrl": "http://file:1", "apiKey": KEY})
    assert (resolve().api_url, resolve().api_key) == ("http://file:1", KEY)
    monkeypatch.setenv("RUNRA_API_KEY", OTHER)
    assert (resolve().api_url, resolve().api_key) == ("http://file:1", OTHER)
    monkeypatch.setenv("RUNRA_API_URL", "http://env:2/v1/")
    assert (resolve().api_url, resolve().api_key) == ("http://env:2", OTHER)
    assert resolve("rra_test_c", "https://here").api_url == "https://here"
    assert resolve("rra_test_c", "https://here").api_key == "rra_test_c"


@pytest.mark.parametrize("url", ["http://elsewhere:7747", "http://file:2", "https://file:1", "http://file:1/sub"])
async def test_the_files_key_goes_to_the_files_url_only(config: Any, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config({"apiUrl": "http://file:1", "apiKey": KEY})
    assert resolve(api_url="http://FILE:1/").api_key == KEY
    assert resolve(api_url=url).api_key is None
    monkeypatch.setenv("RUNRA_API_URL", url)
    async with AsyncRunra() as client:
        with pytest.raises(RunraError, match="belongs to http://file:1 and is sent nowhere else") as caught:
            await client.sandboxes.list()
    assert (caught.value.code, caught.value.status) == ("UNAUTHORIZED", 0)


def test_a_key_without_url_in_the_file_is_the_local_servers(config: Any) -> None:
    config({"apiKey": KEY})
    assert resolve().api_key == KEY
    assert resolve(api_url="http://127.0.0.1:1").api_key is None


async def test_no_key_is_told_at_the_first_call(client: Any, connect: Any, wire: Wire) -> None:
    nobody = connect(api_url=wire.url)
    assert nobody.api_key == ""
    with pytest.raises(RunraError, match="runra serve") as caught:
        await nobody.sandboxes.get("sb_0123456789abcdef")
    assert caught.value.code == "UNAUTHORIZED"
    assert wire.requests == []


@pytest.mark.parametrize("content", ["{", "[]", '{"apiUrl": 3}', '{"apiKey": ["x"]}'])
def test_a_broken_file_is_named(config: Any, content: str) -> None:
    config(content)
    with pytest.raises(RunraError, match=r"config\.json") as caught:
        Runra()
    assert caught.value.code == "INVALID_CONFIG"


def test_a_broken_file_does_not_matter_when_nothing_is_needed_of_it(config: Any) -> None:
    config("{")
    assert resolve(KEY, "http://here").api_key == KEY


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("api_url", url) for url in ("here", "ftp://x", "http://", "http://a:b@c", "http://x?y", "http://x:99999")],
        *[("api_key", key) for key in ("a b", "a\nb", "ключ")],
        *[("timeout_ms", number) for number in (0, -1, 1.5, "5", True)],
        *[("max_retries", number) for number in (-1, "2", None)],
    ],
)
def test_bad_settings(name: str, value: Any) -> None:
    with pytest.raises(RunraError, match=name) as caught:
        Runra(**{"api_key": KEY, "api_url": "http://x", name: value})
    assert caught.value.code == "INVALID_CONFIG"
    assert KEY not in str(caught.value)


def test_the_key_is_masked_everywhere() -> None:
    client = Runra(KEY, "http://x")
    assert client.api_key == "rra_live_****1234"
    assert KEY not in repr(client) + repr(client.sandboxes) + repr(resolve(KEY, "http://x"))
    assert Settings("http://x", "short").masked_key == "****"
    client.close()


def test_importing_is_light() -> None:
    code = (
        "import sys, runra; from runra import Runra, AsyncRunra, RunraError; "
        "heavy = {'pydantic', 'aiohttp', 'urllib3', 'websockets', 'asyncio'} & set(sys.modules); "
        "print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there() -> None:
    for name in runra.__all__:
        assert getattr(runra, name) is not None
    with pytest.raises(AttributeError, match="Nothing"):
        _ = runra.Nothing  # type: ignore[attr-defined]
    assert set(runra._HOMES) == set(runra.__all__) <= set(dir(runra))
