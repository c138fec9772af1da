"""What the real agents printed, read: their events, and whether the run succeeded by each agent's own rules."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runra.runtime.agents.transcripts import TRANSCRIPTS, AgentEvent, Verdict

FIXTURES = Path(__file__).parent / "fixtures"
COMMAND = "echo hello-from-agent > hello.txt && cat hello.txt"
AGENTS = {"claude": "claude-code", "codex": "codex", "opencode": "opencode"}


def play(name: str, exit_code: int | None, lines: int | None = None) -> tuple[list[AgentEvent], Verdict]:
    transcript = TRANSCRIPTS[AGENTS[name.partition("-")[0]]]()
    printed = (FIXTURES / f"{name}.jsonl").read_text().splitlines()[:lines]
    events = [event for line in printed for event in transcript.feed(line)]
    return events, transcript.verdict(exit_code)


@pytest.mark.parametrize(
    ("name", "exit_code", "success", "kind", "words"),
    [
        ("claude-ok", 0, True, "", ""),
        ("claude-newer-ok", 0, True, "", ""),
        ("claude-partial", 0, True, "", ""),
        ("claude-429-recovered", 0, True, "", ""),
        ("claude-permission-blocked", 0, True, "", ""),
        ("claude-401-retry", None, False, "auth", "authentication_failed"),
        ("claude-500", 1, False, "unavailable", "API Error: 500"),
        ("claude-max-turns", 1, False, "turns", "all its turns"),
        ("claude-max-budget", 1, False, "budget", "all its budget"),
        ("codex-ok", 0, True, "", ""),
        ("codex-cmd-fail", 0, True, "", ""),
        ("codex-file-change", 0, True, "", ""),
        ("codex-ok", 1, False, "no_result", "left with exit code 1"),
        ("codex-401", 1, False, "auth", "401 Unauthorized"),
        ("codex-500", 1, False, "unavailable", "high demand"),
        ("opencode-ok", 0, True, "", ""),
        ("opencode-anthropic", 0, True, "", ""),
        ("opencode-cmd-fail", 0, True, "", ""),
        ("opencode-401", 1, False, "auth", "scripted 401"),
        ("opencode-permission-rejected", 0, False, "failed", "rejected permission"),
    ],
)
def test_verdicts(name: str, exit_code: int | None, success: bool, kind: str, words: str) -> None:
    events, verdict = play(name, exit_code)
    assert (verdict.success, verdict.kind) == (success, kind)
    assert words in (verdict.error or "")
    assert (verdict.error is None) == success
    assert verdict.session_id
    if success:
        assert verdict.summary == "Done: wrote hello.txt"
        assert verdict.turns >= 1
        assert not [event for event in events if event.type == "agent.error" and event.data["fatal"]]


@pytest.mark.parametrize("name", ["claude-ok", "claude-newer-ok", "claude-partial", "codex-ok", "opencode-ok"])
def test_the_happy_loop_as_events(name: str) -> None:
    events, verdict = play(name, 0)
    told = [event for event in events if event.type != "agent.error"]
    kinds = [event.type for event in told]
    call, result = (event.data for event in told if event.type in ("agent.tool_call", "agent.tool_result"))
    assert kinds[0] == "agent.thinking"
    assert kinds[-1] == "agent.message"
    assert kinds.index("agent.tool_call") + 1 == kinds.index("agent.tool_result")
    assert (call["tool"], COMMAND in call["input"]["command"]) == ("bash", True)
    assert (result["tool"], result["id"], result["isError"]) == ("bash", call["id"], False)
    assert result["output"].strip() == "hello-from-agent"
    usage = verdict.usage
    counted = (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens, usage.output_tokens)
    assert counted == ((2000, 600, 40, 84) if name.startswith("claude") else (1400, 600, 0, 84))
    assert usage.reasoning_tokens == (0 if name.startswith("claude") else 14)


def test_what_went_wrong_inside_a_run_is_told() -> None:
    named = ("codex-cmd-fail", "opencode-cmd-fail", "codex-file-change")
    results = {
        name: next(event.data for event in play(name, 0)[0] if event.type == "agent.tool_result") for name in named
    }
    assert [
        (results[name]["exitCode"], results[name]["output"]) for name in ("codex-cmd-fail", "opencode-cmd-fail")
    ] == [(3, "oops\n")] * 2
    assert (results["codex-file-change"]["tool"], results["codex-file-change"]["output"]) == (
        "edit",
        "add /workspace/a.txt",
    )
    (retry,) = (event.data for event in play("claude-429-recovered", 0)[0] if event.type == "agent.error")
    assert (retry["fatal"], "429" in retry["message"]) == (False, True)
    blocked = play("claude-permission-blocked", 0)[0]
    assert [event.data["isError"] for event in blocked if event.type == "agent.tool_result"] == [True]


@pytest.mark.parametrize("name", ["claude-ok", "codex-ok", "opencode-ok"])
def test_no_last_line_is_no_success(name: str) -> None:
    total = len((FIXTURES / f"{name}.jsonl").read_text().splitlines())
    for kept in range(total - 1):
        for exit_code in (0, None):
            verdict = play(name, exit_code, kept)[1]
            assert not verdict.success, kept
            assert verdict.error


@pytest.mark.parametrize("agent", TRANSCRIPTS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_no_line_breaks_a_transcript(agent: str, data: st.DataObject) -> None:
    """A sandbox may print what it likes: real lines with parts of them replaced by anything."""
    files = sorted(FIXTURES.glob(f"{'claude' if agent == 'claude-code' else agent}-*.jsonl"))
    lines = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    junk = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=4)
        | st.lists(st.integers(), max_size=2)
        | st.just({"a": [1]})
    )
    transcript = TRANSCRIPTS[agent]()

    def spoil(value: Any) -> Any:
        if data.draw(st.integers(0, 9)) == 0:
            return data.draw(junk)
        if isinstance(value, dict):
            return {name: inner if name == "type" else spoil(inner) for name, inner in list(value.items())[:12]}
        return [spoil(inner) for inner in value[:5]] if isinstance(value, list) else value

    for _ in range(data.draw(st.integers(1, 6))):
        for event in transcript.feed(json.dumps(spoil(data.draw(st.sampled_from(lines))))):
            json.dumps(event.data)
    for line in ("", "{", "[]", "null", "[" * 10_000, "Reading additional input from stdin..."):
        assert transcript.feed(line) == []
    transcript.verdict(data.draw(st.none() | st.integers(0, 255)))
