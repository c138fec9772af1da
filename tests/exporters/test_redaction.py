"""Redaction: what must not leave, what must, and what is cut."""

from __future__ import annotations

import json
import string
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runra.runtime.exporters import Redactor, secret_values
from tests.exporters.making import event

LETTERS = string.ascii_letters + string.digits
LONG = (LETTERS * 2)[:40]


def cleaned(data: dict[str, Any], *secrets: str, **options: Any) -> dict[str, Any]:
    return Redactor(secrets, **options).clean(event("agent.message", data))[0].data


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (f"key rra_live_{LONG}", f"rra_live_{LONG}"),
        (f"OPENAI_API_KEY=sk-proj-{LONG}", f"sk-proj-{LONG}"),
        (f"sk-ant-api03-{LONG}, then", f"sk-ant-api03-{LONG}"),
        (f"stripe sk_live_{LONG}", f"sk_live_{LONG}"),
        (f"ghp_{LONG}", f"ghp_{LONG}"),
        (f"github_pat_{LONG}", f"github_pat_{LONG}"),
        (f"glpat-{LONG}", f"glpat-{LONG}"),
        ("xoxb-123456789012-abcdef", "xoxb-123456789012-abcdef"),
        (f"xaat-{LONG}", f"xaat-{LONG}"),
        (f"hf_{LONG}", f"hf_{LONG}"),
        (f"pypi-{LONG}", f"pypi-{LONG}"),
        ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN7EXAMPLE"),
        ("AIza" + LETTERS[:35], "AIza" + LETTERS[:35]),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcDEF-123", "eyJzdWIiOiIxMjM0In0"),
        ("curl -H 'Authorization: Bearer abcdefgh12345678'", "abcdefgh12345678"),
        ("authorization: basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
        ("psql postgresql://me:pa55word@db/x", "pa55word"),
        ("git clone https://oauth2:gitlabsecret@host/r.git", "gitlabsecret"),
        ("mysql --password=opensesame -u me", "opensesame"),
        ('{"api_key": "abcdef123456"}', "abcdef123456"),
        ("?token=abcdef123456&x=1", "abcdef123456"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----", "MIIE"),
        ("-----BEGIN PRIVATE KEY-----\nMIIEcut off", "MIIEcut off"),
    ],
)
def test_what_looks_like_a_secret_is_kept_back_wherever_it_stands(text: str, secret: str) -> None:
    data = {"command": text, "input": {"args": ["-c", text], "deep": {"er": text}}}
    told = json.dumps(cleaned(data))
    assert secret not in told
    assert told.count("[redacted]") >= 3


@pytest.mark.parametrize(
    "name",
    "password PASSWD apiKey api_key X-Api-Key accessToken GITHUB_TOKEN clientSecret Authorization Set-Cookie "
    "privateKey AWS_SECRET_ACCESS_KEY OPENAI_KEY encryptionKey credentials DATABASE_DSN".split(),
)
def test_text_under_a_secrets_name_is_kept_back(name: str) -> None:
    assert cleaned({name: "plain"}) == {name: "[redacted]"}
    assert cleaned({"env": {name: "plain"}}) == {"env": {name: "[redacted]"}}
    assert cleaned({name: {"user": "u", "parts": ["a"]}}) == {name: {"user": "[redacted]", "parts": ["[redacted]"]}}


def test_innocent_data_stays_as_it_is() -> None:
    data: dict[str, Any] = {
        "command": "cat tokens.txt && ls https://example.com/a:b@c | sort -k2 --key=3",
        "inputTokens": 1234,
        "maxTokens": 5,
        "pid": 7,
        "exitCode": None,
        "oom": False,
        "amount": 0.25,
        "path": "/workspace/naïve/日本.py",
        "key": "Enter",
        "monkey": "a",
        "list": [1, "two", {"three": 3.0}],
        "empty": "",
    }
    assert cleaned(data) == data


def test_known_values_are_kept_back_and_short_ones_are_left() -> None:
    told = cleaned({"text": "a opensesame b opensesame; x12", "n": ["opensesame!"]}, "opensesame", "x12", "")
    assert told == {"text": "a [redacted] b [redacted]; x12", "n": ["[redacted]!"]}
    assert cleaned({"opensesame": 1, f"sk-{LONG}": 2}, "opensesame") == {"[redacted]": 2}
    assert cleaned({"t": "longer-one and longer"}, "longer", "longer-one") == {"t": "[redacted] and [redacted]"}


def test_an_environments_secret_values() -> None:
    env = {"PATH": "/bin", "OPENAI_API_KEY": "k1", "DB_PASSWORD": "k2", "HOME": "/root"}
    assert secret_values(env) == ["k1", "k2"]


def test_long_text_is_cut_and_says_so() -> None:
    told = cleaned({"stdout": "x" * 1_000_000}, max_text=100)["stdout"]
    assert told == "x" * 100 + "… [cut: 1000000 characters in all]"


def test_all_texts_of_an_event_share_a_budget() -> None:
    clean, size = Redactor(max_text=1_000).clean(event("agent.message", {str(n): "y" * 5_000 for n in range(50)}))
    assert sum(len(text.partition("…")[0]) for text in clean.data.values()) <= 4_000
    assert size < 20_000


def test_a_secret_that_the_cut_halves_does_not_show_its_first_half() -> None:
    for before in range(60, 101):
        text = "." * before + "opensesame-opensesame" + "z" * 5_000
        told = cleaned({"t": text}, "opensesame-opensesame", max_text=100)["t"]
        assert "open" not in told, before
        key = "." * before + " sk-" + LONG + " " + "z" * 5_000
        assert "sk-" not in cleaned({"t": key}, max_text=100)["t"], before


def test_secrets_before_the_cut_bring_nothing_from_behind_it_in() -> None:
    text = "opensesame" * 30 + "behind"
    told = cleaned({"t": text}, "opensesame", max_text=100)["t"]
    assert told == "[redacted]" * 10 + f"… [cut: {len(text)} characters in all]"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        (2**70, "0x400000000000000000"),
        ("a\0b", "a\ufffdb"),
        ("\udc80x", "\\udc80x"),
        (b"raw", "b'raw'"),
        ((1, 2), [1, 2]),
    ],
)
def test_what_json_and_postgresql_cannot_hold_becomes_something_they_can(value: Any, told: Any) -> None:
    clean = Redactor().clean(event("agent.message", {"v": value}))[0]
    assert clean.data == {"v": told}
    assert json.loads(clean.model_dump_json(by_alias=True))["data"] == {"v": told}


def test_hostile_shapes_are_bounded() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = {"a": [deep]}
    clean, size = Redactor().clean(event("agent.tool_call", {"input": deep}))
    assert "nested too deep" in clean.model_dump_json()
    clean, size = Redactor().clean(event("agent.tool_call", {"input": {str(n): n for n in range(100_000)}}))
    assert len(clean.data["input"]) <= 2_000
    assert size < 200_000
    clean, size = Redactor().clean(event("agent.tool_call", {"n" * 100_000: 1, "k\0": 2}))
    assert all(len(name) < 400 and "\0" not in name for name in clean.data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=20), inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=20), JSON, max_size=8))
def test_any_data_becomes_json_without_the_secret(data: dict[str, Any]) -> None:
    clean, size = Redactor(["opensesame"]).clean(event("agent.message", {**data, "with": ["opensesame", data]}))
    line = clean.model_dump_json(by_alias=True)
    json.loads(line)
    line.encode()
    assert "opensesame" not in line
    assert "\\u0000" not in line
    assert size > 0


def test_it_costs_microseconds_also_for_long_text() -> None:
    redactor = Redactor(["opensesame"] * 3)
    small, large = event(), event("exec.streamed", {"data": "a=b;c:d sk x " * 700_000})
    cost = {}
    for name, item, rounds in (("small", small, 2_000), ("large", large, 20)):
        best = 1.0
        for _ in range(5):
            begun = time.perf_counter()
            for _ in range(rounds):
                redactor.clean(item)
            best = min(best, (time.perf_counter() - begun) / rounds)
        cost[name] = best
    assert cost["small"] < 0.0005, cost
    assert cost["large"] < 0.02, cost
