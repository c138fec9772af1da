"""`runra agent run`, `runra agent replay` and `runra agents`, with agents that a package brings."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from runra.runtime.llms import PROVIDERS
from tests.agents.conftest import OWN, needs
from tests.cli.agents import with_agents
from tests.cli.conftest import Cli
from tests.cli.test_shell import at_a_terminal
from tests.gateway.conftest import SPEAKS
from tests.scripted import ScriptedModel, agent_loop

RUN = ("agent", "run", "--agent", "scripted")
#: What must never reach a terminal from a stranger: escapes, other controls, and marks that turn writing around.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def agents(cli: Cli, tmp_path: Path) -> Cli:
    return with_agents(cli, tmp_path)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def alive(cli: Cli) -> set[str]:
    return {one["id"] for one in cli.json("ps")}


def test_a_run_in_a_pipe_shows_all_of_it_and_ends_its_sandbox(agents: Cli) -> None:
    before = alive(agents)
    ran = agents(*RUN, "echo made > new.txt; for i in 1 2 3 4 5 6 7 8; do echo line $i; done")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("sandbox sb_")
    assert "· I think\n  thought 0\n" in ran.out
    assert "thought 11" not in ran.out
    assert "  … 9 more lines" in ran.out
    assert "● bash  echo made > new.txt; for i in" in ran.out
    assert "  line 5\n  … 3 more lines\n" in ran.out
    assert re.search(r"  ⎿ exit 0 · \d+\.\d s\n", ran.out)
    assert re.search(r"● bash  exit 3\n  ⎿ exit 3 · \d+\.\d s\n", ran.out)
    assert "\nDone.\n" in ran.out
    table = dict(re.findall(r"^([a-z]+) +(.+)$", ran.out.rpartition("Done.\n")[2], re.MULTILINE))
    assert table["result"] == "success"
    assert table["cost"] == "$0.0123, counted by the gateway"
    assert table["created"] == "new.txt"
    assert (table["turns"], table["session"]) == ("2", "ses-1")
    assert not CONTROLS.search(ran.out)
    assert alive(agents) == before


def test_json_prints_events_and_the_result_last(agents: Cli, tmp_path: Path) -> None:
    kept = tmp_path / "run.jsonl"
    ran = agents(*RUN, "echo made > new.txt", "--json", "--diff", "--record", kept)
    assert ran.code == 0, ran.err
    told = lines(ran.out)
    result = told.pop()["result"]
    assert result["success"] is True
    assert result["files"]["created"] == ["new.txt"]
    assert "+made" in result["diff"]
    assert {one["runId"] for one in told} == {result["runId"]}
    types = [one["type"] for one in told]
    assert types.index("agent.tool_call") < types.index("agent.tool_result") < types.index("cost.total")
    assert kept.read_text() == ran.out, "a record is what --json prints"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_nothing_an_agent_says_steers_the_terminal(agents: Cli, tmp_path: Path) -> None:
    ran = agents(*RUN, "hostile", "--record", tmp_path / "r.jsonl")
    assert ran.code == 1
    assert not CONTROLS.search(ran.out + ran.err)
    assert "[bold red]not markup[/]" in ran.out
    assert "result    failed (failed)" in ran.out
    as_json = agents(*RUN, "hostile", "--json")
    assert as_json.code == 1
    assert as_json.out.isascii()
    assert not CONTROLS.search(as_json.out)
    assert "\x1b[2J" in lines(as_json.out)[-1]["result"]["error"], "for programs it is as it was"
    # At a terminal, Rich's own sequences are there, and the agent's are not.
    with at_a_terminal(agents, *RUN, "hostile") as person:
        seen = person.reads("run  ") + person.seen.decode()
        assert person.waits() == 1
    for bad in ("\x1b]0;", "\x1b[2J", "\x9b", "\u202e", "\x07"):
        assert bad not in seen
    assert "[bold red]not markup[/]" in seen


def test_the_live_view_ticks_and_gives_the_terminal_back(agents: Cli) -> None:
    with at_a_terminal(agents, *RUN, "wait") as person:
        person.reads("waiting")
        person.reads("scripted · turn 1 · 1200 in, 50 out · $0.01")
        person.reads("Ctrl-C stops")
        person.reads("scripted · turn 1 · 1200 in, 50 out · $0.01")  # again: it ticks
        person.types("\x03")
        ended = person.reads("(stopped)")
        assert "failed" in ended
        assert person.waits() == 130
        assert "\x1b[?25h" in ended + person.seen.decode(), "the cursor is there again"


def test_a_run_that_cannot_be_stopped_is_cancelled_with_its_sandbox(agents: Cli) -> None:
    before = alive(agents)
    run = agents.start("agent", "run", "--agent", "stubborn", "stuck", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert run.stdout is not None
    while b"waiting" not in run.stdout.readline():
        assert run.poll() is None
    run.send_signal(signal.SIGINT)
    assert b"cancelled" in run.communicate(timeout=30)[1]
    assert run.returncode == 130
    assert alive(agents) == before


def test_a_kept_sandbox_goes_on_also_when_it_was_paused(agents: Cli) -> None:
    kept = lines(agents.ok(*RUN, "echo one > one.txt", "--keep", "--json"))[-1]["result"]
    sandbox = kept["sandboxId"]
    try:
        agents.ok("pause", sandbox)
        shown = agents.ok(*RUN, "cat one.txt", "--sandbox", sandbox, "--session", kept["sessionId"])
        assert "\n  one\n" in shown
        assert f"--agent scripted --sandbox {sandbox} --session ses-1" in shown
        assert sandbox in alive(agents), "it was not made by the run"
    finally:
        agents.ok("rm", sandbox)


HOSTILE_FILES = r"""
mkdir -p deep/er 'sp ace'; echo plain > deep/er/plain.txt; echo odd > "$(printf 'sp ace/-rf\033[2J\nx')"
ln -s /etc/passwd out-link; ln -s deep/er/plain.txt in-link; ln -s / slash
mkfifo pipe; echo v > -v; printf '#!/bin/sh\n' > tool && chmod 4755 tool
"""


def test_out_brings_what_changed_and_nothing_leads_out_of_it(agents: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = alive(agents)
    ran = agents(*RUN, HOSTILE_FILES, "--out", out)
    assert ran.code == 0, ran.err
    assert (out / "deep/er/plain.txt").read_text() == "plain\n"
    assert (out / "-v").read_text() == "v\n"
    assert (out / "in-link").read_text() == "plain\n"
    assert {path.name for path in (out / "sp ace").iterdir()} == {"-rf\x1b[2J\nx"}
    assert stat.S_IMODE((out / "tool").stat().st_mode) == 0o755
    assert not os.path.lexists(out / "out-link")
    assert not os.path.lexists(out / "slash")
    assert "left out: out-link: a link out of the folder" in ran.err
    assert "5 files" in ran.err
    assert not CONTROLS.search(ran.err + ran.out)
    assert alive(agents) == before
    full = agents(*RUN, "true", "--out", out)
    assert (full.code, "is not empty" in full.err) == (2, True)
    assert alive(agents) == before


@pytest.mark.parametrize("agent", ["custom", "claude-code", "codex"])
async def test_each_agent_of_ours_from_the_terminal(cli: Cli, tmp_path: Path, agent: str) -> None:
    if agent != "custom":
        needs(agent)
    out, speaks = tmp_path / "out", OWN.get(agent, "chat")
    provider, path = SPEAKS[speaks]
    async with ScriptedModel(agent_loop()) as model:
        words = ["agent", "run", "write hello.txt", "--agent", agent, "--llm", provider, "--model", "m-1", "--image", "host"]
        words += ["--base-url", model.url + path, "--timeout", "100s", "--max-turns", "9", "--out", str(out), "--diff"]
        key = {PROVIDERS[provider].key_env[0]: model.key}
        ran = await asyncio.to_thread(cli, *words, env=key, timeout=110)
    assert ran.code == 0, ran.out + ran.err
    assert (out / "hello.txt").read_text() == "hello-from-agent\n"
    assert "● bash  echo hello-from-agent > hello.txt" in ran.out
    assert "+hello-from-agent" in ran.out
    assert "counted by the gateway" in ran.out
    assert model.key not in ran.out + ran.err


def test_a_run_is_watched_again(agents: Cli, tmp_path: Path) -> None:
    first, both = tmp_path / "one.jsonl", tmp_path / "both.jsonl.gz"
    ran = agents.ok(*RUN, "echo one", "--record", first)
    again = agents.ok("agent", "replay", first, "--speed", "0")
    assert again == ran, "the same view"
    assert agents.ok("agent", "replay", first, "--speed", "0", "--json") == first.read_text()
    agents.ok(*RUN, "echo two", "--record", tmp_path / "two.jsonl")
    with gzip.open(both, "wb") as packed:
        packed.write(first.read_bytes() + b'{"type": "of.later"}\n' + (tmp_path / "two.jsonl").read_bytes() + b'{"id"')
    several = agents("agent", "replay", both)
    assert several.code == 2
    run_id = lines(first.read_text())[-1]["result"]["runId"]
    assert run_id in several.err
    chosen = agents("agent", "replay", both, "--run", run_id, "--speed", "0")
    assert (chosen.code, chosen.out) == (0, ran)
    assert "2 lines" in chosen.err
    assert agents("agent", "replay", both, "--run", "none").code == 2


def test_replay_keeps_the_pace(agents: Cli, tmp_path: Path) -> None:
    def event(seconds: str, text: str) -> str:
        envelope = {"id": f"evt_{seconds}", "timestamp": f"2026-01-01T00:00:{seconds}Z", "sandboxId": "sb", "runId": "r"}
        return json.dumps({**envelope, "type": "agent.message", "data": {"text": text}})

    file = tmp_path / "r.jsonl"
    file.write_text("\n".join([event("00.000", "first"), event("12.000", "last")]))
    took = {}
    for speed in ("0", "6"):
        began = time.monotonic()
        assert "last" in agents.ok("agent", "replay", file, "--speed", speed)
        took[speed] = time.monotonic() - began
    assert took["6"] > 2.0
    assert took["0"] < took["6"]


def test_the_exporters_file_is_one_as_well(agents: Cli, tmp_path: Path) -> None:
    config = {"exporters": [{"provider": "jsonl", "config": {"path": str(tmp_path / "events.jsonl")}}]}
    (agents.home / "runra.config.json").write_text(json.dumps({"observability": config, "agent": {"provider": "scripted"}}))
    try:
        agents.env["RUNRA_TRUST_PROJECT"] = "1"
        ran = agents.ok("agent", "run", "echo one")
    finally:
        (agents.home / "runra.config.json").unlink()
    again = agents.ok("agent", "replay", tmp_path / "events.jsonl", "--speed", "0")
    assert again.partition("\nresult")[0] == ran.partition("\nresult")[0]
    assert "not in this file" in again


def test_bad_use(agents: Cli) -> None:
    for words, said in (
        ((*RUN, " "), "empty"),
        (("agent", "run", "x"), "--agent"),
        ((*RUN, "x", "--session", "s"), "--sandbox"),
        ((*RUN, "x", "--timeout", "soon"), "30m"),
        ((*RUN, "x", "--permission", "prompt"), "nobody is at a terminal"),
        ((*RUN, "x", "--base-url", "http://127.0.0.1:1"), "--llm"),
        ((*RUN, "x", "--sandbox", "sb_0000000000000000"), "no sandbox"),
        (("agent", "run", "--agent", "nobody", "x"), "no agent 'nobody'"),
        (("agent", "run", "--agent", "codex", "x", "--permission", "plan"), "plan"),
    ):
        ran = agents(*words)
        assert (ran.code, said in ran.err) == (2, True), (words, ran.err)


def test_the_person_is_asked(agents: Cli) -> None:
    for answer, allowed in (("y", True), ("no", False)):
        with at_a_terminal(agents, *RUN, "permit", "--permission", "prompt") as person:
            person.reads("bash  rm -r / [y/N] ")
            person.types(f"{answer}\r")
            assert f"allowed: {allowed}" in person.reads("result")
            assert person.waits() == 0


def test_agents_lists_what_each_can_and_survives_broken_plugins(agents: Cli) -> None:
    shown = agents.ok("agents")
    assert re.search(r"^scripted +scripted-agents 1\.2 +max_turns prompt resume$", shown, re.MULTILINE)
    assert re.search(r"^broken .*cannot be used: .*scripted_agents_broken", shown, re.MULTILINE)
    assert re.search(r"^rude .*cannot be used: .*no .way", shown, re.MULTILINE)
    assert re.search(r"^claude-code +built in: npm @anthropic-ai/claude-code@[0-9.]+ +\S.*resume", shown, re.MULTILINE)
    assert re.search(r"^resume +going on with an earlier conversation", shown, re.MULTILINE)
    assert not CONTROLS.search(shown)
    told = agents.json("agents")
    found = {one["id"]: one for one in told["agents"]}
    assert found["scripted"]["abilities"] == ["max_turns", "prompt", "resume"]
    assert found["broken"]["problem"]
    assert found["codex"]["image"] == "agents/codex"
    assert set(found["codex"]["abilities"]) <= set(told["abilities"])
