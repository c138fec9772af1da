"""Settling where a model is, and what its tokens cost."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from runra.errors import RunraError
from runra.runtime.llms import PROVIDERS, Usage, prices, resolve
from runra.runtime.llms.failures import from_answer


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for provider in PROVIDERS.values():
        for name in (*provider.key_env, *provider.base_url_env):
            monkeypatch.delenv(name, raising=False)


def test_the_environment_gives_key_and_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-env")
    monkeypatch.setenv("OLLAMA_HOST", "10.0.0.7:11434")
    target = resolve("anthropic", {"model": "claude-opus-4-8"})
    assert target.request_headers()["x-api-key"] == "sk-env"
    assert target.url("messages") == "https://api.anthropic.com/v1/messages"
    assert "sk-env" not in repr(target)
    assert resolve("ollama", {"model": "qwen3:8b"}).url("chat") == "http://10.0.0.7:11434/v1/chat/completions"
    monkeypatch.setenv("TEAM_KEY", "sk-team")
    assert resolve("openai", {"model": "gpt-5.2", "apiKeyEnv": "TEAM_KEY"}).key == "sk-team"
    assert (
        resolve("gemini", {"model": "gemini-3-pro", "apiKey": "k"})
        .url("gemini")
        .endswith("/v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse")
    )


@pytest.mark.parametrize(
    ("provider", "config", "field"),
    [
        ("nobody", {}, "provider"),
        ("openai", {"model": "gpt-5"}, "apiKey"),
        ("openai", {"apiKey": "k"}, "model"),
        ("openai", {"model": "../../x", "apiKey": "k"}, "model"),
        ("custom", {"model": "m"}, "baseUrl"),
        ("custom", {"model": "m", "baseUrl": "ftp://x"}, "baseUrl"),
        ("custom", {"model": "m", "baseUrl": "http://u:p@x"}, "baseUrl"),
        ("vllm", {"model": "m", "apiKey": "two words"}, "apiKey"),
        ("vllm", {"model": "m", "apikey": "secret-thing"}, "apikey"),
        ("vllm", {"model": "m", "timeouts": {"idleMs": 0}}, "timeouts.idleMs"),
    ],
)
def test_what_is_wrong_is_named_without_secrets(provider: str, config: dict[str, Any], field: str) -> None:
    with pytest.raises(RunraError) as caught:
        resolve(provider, config)
    assert caught.value.code == "INVALID_CONFIG"
    assert caught.value.details["field"] == field
    assert "secret-thing" not in str(caught.value)


def test_prices(caplog: pytest.LogCaptureFixture) -> None:
    usage = Usage(input_tokens=680, cache_read_tokens=300, cache_write_tokens=20, output_tokens=42)
    claude = resolve("anthropic", {"model": "claude-opus-4-8[1m]", "apiKey": "k"})
    assert prices.cost(claude, usage) == prices.Cost(pytest.approx(0.004725), "genai-prices")  # as claude-code says
    own = resolve(
        "anthropic", {"model": "m", "apiKey": "k", "prices": {"m": {"input": 10, "output": 0, "cacheRead": 1}}}
    )
    assert prices.cost(own, usage) == prices.Cost(pytest.approx((700 * 10 + 300) / 1e6), "config")
    assert prices.cost(resolve("vllm", {"model": "m"}), usage) == prices.Cost(0.0, "local")
    assert prices.cost(resolve("custom", {"model": "m", "baseUrl": "http://127.0.0.1:1"}), usage).source == "local"
    routed = resolve("openrouter", {"model": "x/y", "apiKey": "k"})
    assert prices.cost(routed, Usage(cost=0.5)) == prices.Cost(0.5, "provider")
    far = resolve("custom", {"model": "unheard-of", "baseUrl": "https://models.example"})
    with caplog.at_level(logging.WARNING):
        assert prices.cost(far, usage) == prices.cost(far, usage) == prices.Cost(None, "unknown")
    assert len([record for record in caplog.records if "unheard-of" in record.getMessage()]) == 1


def test_retry_after_in_all_its_forms() -> None:
    def wait(headers: dict[str, str], body: bytes = b"{}") -> Any:
        return from_answer(429, headers, body, provider="p", secret="").details.get("retryAfterMs")

    assert wait({"retry-after": "2"}) == 2000
    assert wait({"Retry-After-Ms": "1500", "retry-after": "9"}) == 1500
    assert wait({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert wait({}, b'{"error": {"details": [{"@type": "x"}, {"retryDelay": "34s"}]}}') == 34_000
    assert wait({"retry-after": "soon"}) is None
    assert wait({}) is None


def test_quota_is_no_rate_limit() -> None:
    body = b'{"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}'
    error = from_answer(429, {}, body, provider="openai", secret="")
    assert (error.details["kind"], error.retryable) == ("quota", False)


def test_a_key_the_provider_repeats_is_taken_out() -> None:
    body = b'{"error": {"message": "bad request of sk-secret-key-1"}}'
    assert "sk-secret-key-1" not in str(from_answer(400, {}, body, provider="p", secret="sk-secret-key-1"))
