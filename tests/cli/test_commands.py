"""run, exec, ps and the rest, as a script or a person at a pipe sees them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Cli

ID = re.compile(r"sb_[a-z0-9]{16}\n")


def test_run_streams_both_outputs_apart_and_exits_with_the_commands_code(cli: Cli) -> None:
    ran = cli("run", "echo out; echo err >&2; exit 7")
    assert (ran.code, ran.out, ran.err) == (7, "out\n", "err\n")


def test_run_takes_resources_env_files_and_stdin(cli: Cli, tmp_path: Path) -> None:
    local = tmp_path / "in.txt"
    local.write_text("from a file\n")
    ran = cli(
        *("run", "cat; cat /tmp/in.txt; echo $A $B; nproc; id -un", "--image", "host", "--cpu", "2"),
        *("--memory-mb", "2048", "--env", "A=1", "-e", "B", "--file", f"{local}:/tmp/in.txt"),
        stdin=b"from a pipe\n",
        env={"B": "taken along"},
    )
    assert ran.code == 0, ran.err
    assert ran.out.splitlines()[:3] == ["from a pipe", "from a file", "1 taken along"]


def test_run_passes_bytes_through(cli: Cli) -> None:
    data = bytes(range(256)) * 1000
    done = cli.raw("run", "cat", stdin=data)
    assert done.returncode == 0, done.stderr
    assert done.stdout == data


def test_output_comes_while_the_command_still_runs(cli: Cli) -> None:
    with cli.start("run", "echo first; sleep 30", stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130


@pytest.mark.parametrize("deadly", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_sandbox_of_a_run(cli: Cli, deadly: signal.Signals) -> None:
    tag = f"RUN_{deadly.name}"
    with cli.start(
        "run", "-e", f"{tag}=1", "echo ready; sleep 60", stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        mine = [one["id"] for one in cli.json("ps") if tag in one["env"]]
        assert len(mine) == 1
        process.send_signal(deadly)
        assert process.wait(timeout=20) == 128 + deadly
    assert mine[0] not in cli.ok("ps", "-q")


def test_run_keep_leaves_the_sandbox_and_names_it(cli: Cli) -> None:
    ran = cli("run", "echo hi > kept", "--keep")
    assert ran.code == 0
    kept = ran.err.strip()
    try:
        assert cli.ok("exec", kept, "cat kept") == "hi\n"
    finally:
        cli.ok("rm", kept)
    assert kept not in cli.ok("ps", "-q")


def test_create_ps_pause_resume_rm(cli: Cli) -> None:
    made = cli.ok("create", "--metadata", "team=blue", "--memory-mb", "2048")
    assert ID.fullmatch(made)
    one = made.strip()
    found = {entry["id"]: entry for entry in cli.json("ps")}[one]
    assert (found["state"], found["metadata"], found["resources"]["memoryMb"]) == ("running", {"team": "blue"}, 2048)
    assert cli.ok("pause", one) == made
    assert one in cli.ok("ps", "-q", "--state", "paused")
    assert one not in cli.ok("ps", "-q", "--state", "running")
    ran = cli("exec", one, "true")
    assert ran.code == 125
    assert ran.err.splitlines()[0].startswith("INVALID_STATE: ")
    assert f"runra resume {one}" in ran.err
    assert cli.ok("resume", one) == made
    assert cli.ok("exec", one, "echo awake") == "awake\n"
    assert cli.ok("rm", one) == made
    assert one not in cli.ok("ps", "-q")
    gone = {entry["id"]: entry for entry in cli.json("ps", "--all")}[one]
    assert (gone["state"], gone["terminationReason"]) == ("terminated", "user")


def test_rm_takes_several_and_goes_on_after_one_that_fails(cli: Cli) -> None:
    one, two = cli.ok("create").strip(), cli.ok("create").strip()
    ran = cli("rm", one, "sb_0000000000000000", two)
    assert ran.code == 1
    assert ran.out.split() == [one, two]
    assert "SANDBOX_NOT_FOUND" in ran.err


def test_piped_tables_are_plain(cli: Cli, sandbox: str) -> None:
    titles, *rows = cli.ok("ps").splitlines()
    assert titles.split() == ["ID", "IMAGE", "STATE", "CPU", "MEMORY", "AGE", "METADATA"]
    row = next(row for row in rows if sandbox in row)
    assert "\x1b" not in row
    assert "\t" not in row
    assert re.split(r"\s{2,}", row)[:5] == [sandbox, "host", "running", "2", "4096 MB"]


def test_exec_words_options_and_codes(cli: Cli, sandbox: str) -> None:
    assert cli.ok("exec", sandbox, "echo $((6 * 7)) | cat") == "42\n"
    assert cli.ok("exec", sandbox, "printf", "%s|", "-n", "a b", "$HOME") == "-n|a b|$HOME|"
    assert cli.ok("exec", "-w", "/usr", "-e", "X=1", "-u", "user", sandbox, "pwd; echo $X; id -un") == "/usr\n1\nuser\n"
    assert cli("exec", sandbox, "exit 3").code == 3
    assert cli("exec", sandbox, "no-such-program").code == 127
    assert cli("exec", sandbox, "kill -9 $$").code == 137
    assert cli.ok("exec", sandbox, "wc -c", stdin=b"x" * 300_000).strip() == "300000"


def test_exec_timeout_is_told(cli: Cli, sandbox: str) -> None:
    ran = cli("exec", "--timeout-ms", "300", sandbox, "echo begun; sleep 60")
    assert (ran.code, ran.out) == (124, "begun\n")
    assert "--timeout-ms" in ran.err
    ran = cli("run", "echo begun; sleep 60", "--timeout-ms", "1500")
    assert (ran.code, ran.out) == (124, "begun\n")
    assert "--timeout-ms" in ran.err


def test_a_detached_process_and_its_logs(cli: Cli, sandbox: str) -> None:
    pid = cli.ok("exec", "--detach", sandbox, "echo one; sleep 0.5; echo two; echo three >&2; exit 4").strip()
    assert pid.isdigit()
    ran = cli("logs", sandbox, pid)
    assert (ran.code, ran.out, ran.err) == (0, "one\ntwo\n", "three\n")
    assert cli("logs", sandbox, "99999").code == 1


def test_an_open_stdin_that_says_nothing_does_not_hold_a_command_up(cli: Cli, sandbox: str) -> None:
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            cli.command("exec", sandbox, "echo done"),
            stdin=reader,
            env=cli.env,
            capture_output=True,
            timeout=30,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, b"done\n")
    finally:
        os.close(reader)
        os.close(writer)


def test_what_a_sandbox_says_stays_on_its_line() -> None:
    from runra.cli.watching import _shown

    assert (_shown("echo ü"), _shown(3), _shown(None)) == ("echo ü", "3", "None")
    assert _shown("a\x1b[2Jb\nc") == r'"a\u001b[2Jb\nc"'


def test_events_tell_what_happens_as_json_lines(cli: Cli) -> None:
    # From the beginning: it may connect after what it is to tell of.
    with cli.start("events", "--json", "--after", "evt_0", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        made = cli.ok("create").strip()
        cli.ok("rm", made)
        seen = []
        for line in process.stdout:
            event = json.loads(line)
            if event["sandboxId"] == made:
                seen.append(event["type"])
            if seen[-1:] == ["sandbox.terminated"]:
                break
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130
    assert seen[0] == "sandbox.created"


def test_keys_are_made_listed_and_revoked(cli: Cli) -> None:
    made = cli.json("key", "create", "reader", "--profile", "read-only")
    secret = made["key"]
    assert secret.startswith("rra_")
    assert cli("ps", env={"RUNRA_API_KEY": secret}).code == 0
    refused = cli("create", env={"RUNRA_API_KEY": secret})
    assert refused.code == 1
    assert refused.err.startswith("FORBIDDEN: ")
    listed = cli.ok("key", "ls")
    assert made["id"] in listed
    assert secret not in listed
    assert cli.ok("key", "rm", made["id"]).strip() == made["id"]
    assert cli("ps", env={"RUNRA_API_KEY": secret}).err.startswith("UNAUTHORIZED: ")
    other = cli("auth", "create-key", "--name", "runner", "--scope", "sandbox:read", "--scope", "sandbox:create")
    assert re.fullmatch(r"rra_\w+\n", other.out)


def test_errors_have_a_code_a_message_and_a_cure(cli: Cli) -> None:
    ran = cli("exec", "sb_0000000000000000", "true")
    assert ran.code == 125
    assert ran.err.startswith("SANDBOX_NOT_FOUND: ")
    assert "runra ps --all" in ran.err
    assert cli("pause", "sb_0000000000000000").code == 1
    ran = cli("create", "--cpu", "3")
    assert ran.code == 1
    assert "INVALID_" in ran.err
    assert "2, 4, 8" in ran.err
    ran = cli("ps", env={"RUNRA_API_URL": "http://127.0.0.1:9", "RUNRA_API_KEY": "rra_test_x"})
    assert ran.code == 1
    assert "runra serve" in ran.err
    for wrong in (["ps", "--no-such"], ["nonsense"], ["run", "x", "--env", "=1"], ["rm"], ["run", "x", "-f", "a:b"]):
        assert cli(*wrong).code == 2


def test_version_and_help(cli: Cli) -> None:
    assert re.fullmatch(r"runra \d+\.\d+\.\d+\n", cli.ok("--version"))
    told = cli.ok("--help")
    for command in ("serve", "run", "create", "ps", "exec", "shell", "cp", "pause", "resume", "rm", "logs", "doctor"):
        assert re.search(rf"\b{command}\b", told)


def test_the_wall_can_be_chosen(cli: Cli) -> None:
    assert cli.ok("run", "--isolation", "bubblewrap", "echo hi") == "hi\n"
    ran = cli("create", "--isolation", "paper")
    assert ran.code == 1
    assert ran.err.startswith("INVALID_CONFIG: ")
    assert "bubblewrap" in ran.err
