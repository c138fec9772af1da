"""An ACP agent of these tests' own, run inside a sandbox: `python3 acp_agent.py WHAT`. Every line it gets goes to
/workspace/heard.jsonl, so that what we say can be judged."""

import json
import os
import sys
import time

WHAT = sys.argv[1]
TEXT = {"type": "text"}
seen = open(f"{os.getcwd()}/heard.jsonl", "a")  # noqa: SIM115 - for as long as it lives


def send(**message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def hear():
    line = sys.stdin.readline()
    if not line:
        sys.exit(0)
    seen.write(line)
    seen.flush()
    return json.loads(line)


def update(kind, /, **fields):
    send(method="session/update", params={"sessionId": "s-1", "update": {"sessionUpdate": kind, **fields}})


def say(words, message="m-1"):
    update("agent_message_chunk", content={**TEXT, "text": words}, messageId=message)


def ask(method, **params):
    """Ask the client, and wait for its answer or for a cancellation."""
    send(id="ask-1", method=method, params={"sessionId": "s-1", **params})
    answer, cancelled = None, False
    while answer is None:
        message = hear()
        if message.get("id") == "ask-1" and "method" not in message:
            answer = message
        cancelled = cancelled or message.get("method") == "session/cancel"
    return answer, cancelled


def edit(path, text):
    """As the real ones do: a call, a permission, the client's file, the end of the call."""
    call = {"toolCallId": "t-1", "title": f"Edit {path}", "kind": "edit", "rawInput": {"path": path, "text": text}}
    update("tool_call", **{**call, "rawInput": {}}, status="pending")
    options = [
        {"optionId": "always", "name": "Always", "kind": "allow_always"},
        {"optionId": "yes", "name": "Allow", "kind": "allow_once"},
        {"optionId": "no", "name": "Reject", "kind": "reject_once"},
    ]
    answer, _ = ask("session/request_permission", toolCall=call, options=options)
    outcome = answer["result"]["outcome"]
    if outcome.get("optionId") != "yes":
        update("tool_call_update", toolCallId="t-1", status="failed", rawOutput=outcome["outcome"])
        return outcome["outcome"] + " " + str(outcome.get("optionId"))
    answer, _ = ask("fs/write_text_file", path=path, content=text)
    if "error" in answer:
        return answer["error"]["message"]
    update("tool_call_update", toolCallId="t-1", status="completed", content=[{"type": "diff", "path": path, "oldText": None, "newText": text}])
    answer, _ = ask("fs/read_text_file", path=path, line=2, limit=1)
    return answer["result"]["content"]


def turn(prompt):
    if WHAT == "edit":
        outcome = edit("/workspace/a.txt", "one\ntwo\nthree\n")
        say(outcome)
        return "cancelled" if outcome.startswith("cancelled") else "end_turn"
    if WHAT == "files":
        say(json.dumps([ask("fs/read_text_file", path=path)[0]["error"] for path in ("/nowhere", "relative")]))
        say(json.dumps(ask("terminal/create", command="ls")[0]["error"]), "m-2")
    elif WHAT == "write":
        say(json.dumps(ask("fs/write_text_file", path="/workspace/b.txt", content="b")[0]))
    elif WHAT == "plan":
        entries = [{"content": "look", "priority": "high", "status": "completed"}, {"content": "write", "priority": "low", "status": "pending"}]
        update("plan", entries=entries)
        update("agent_thought_chunk", content={**TEXT, "text": "hm"})
        update("a_kind_of_the_future", anything=1)
        say("a")
        say("b")
        say("c", "m-2")
        update("usage_update", used=1, size=2, cost={"amount": 0.25, "currency": "USD"})
    elif WHAT == "garbage":
        for _ in range(500):
            print("npm warn deprecated")
        sys.stdout.flush()
        time.sleep(4242)
    elif WHAT == "warnings":
        print("npm warn deprecated\n[]\n{\"half\":\n")
        say("fine")
    elif WHAT == "long":
        sys.stdout.write("x" * (40 << 20))
        sys.stdout.flush()
        time.sleep(4242)
    elif WHAT == "dies":
        say("so far")
        sys.stderr.write("Segmentation fault\n")
        os._exit(3)
    elif WHAT == "silent":
        os.spawnlp(os.P_NOWAIT, "sleep", "sleep", "4242")
        time.sleep(4242)
    elif WHAT == "works":
        say("working")
        while hear().get("method") != "session/cancel":
            pass
        say(" and stopped")
        return "cancelled"
    elif WHAT == "refuses":
        return "refusal"
    elif WHAT == "flood":
        for number in range(500):
            send(id=number, method="session/request_permission", params={"sessionId": "s-1", "toolCall": {"toolCallId": str(number)}, "options": []})
        time.sleep(4242)
    elif WHAT == "echo":
        say(prompt)
    return "end_turn"


def main():
    if WHAT == "mute":
        time.sleep(4242)
    while True:
        message = hear()
        method, params, id = message.get("method"), message.get("params"), message.get("id")
        if method == "initialize":
            version = 99 if WHAT == "new" else params["protocolVersion"]
            methods = [{"id": "login", "name": "Log in", "description": "run `agent login`"}]
            send(id=id, result={"protocolVersion": version, "agentCapabilities": {"loadSession": WHAT == "echo"}, "authMethods": methods})
        elif method == "session/new":
            if WHAT == "login":
                send(id=id, error={"code": -32000, "message": "Authentication required"})
            else:
                modes = {"currentModeId": "code", "availableModes": [{"id": "code", "name": "Code"}, {"id": "plan", "name": "Plan"}]}
                send(id=id, result={"sessionId": "s-1", **({"modes": modes} if WHAT == "edit" else {})})
        elif method == "session/load":
            update("user_message_chunk", content={**TEXT, "text": "old question"})
            say("old answer")
            send(id=id, result=None)
        elif method == "session/set_mode":
            send(id=id, result={})
        elif method == "session/prompt":
            if WHAT == "errs":
                send(id=id, error={"code": -32603, "message": "Internal error", "data": {"details": "429 Too Many Requests"}})
                continue
            stop = turn(params["prompt"][0]["text"])
            usage = {"inputTokens": 10, "outputTokens": 5, "thoughtTokens": 2, "totalTokens": 17}
            send(id=id, result={"stopReason": stop, "usage": usage})


main()
