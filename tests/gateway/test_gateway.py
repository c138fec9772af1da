"""The gateway's own work: tokens, limits, counts, faults, the key that stays outside."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st

from runra.errors import RunraError
from runra.runtime.gateway import Gateway, GatewayServer, RunLimits, unsupported
from runra.runtime.gateway.asgi import GatewayApp
from runra.runtime.gateway.bodies import parse
from runra.runtime.gateway.streams import Redactor
from runra.runtime.llms import resolve
from tests.gateway.conftest import PATHS, SPEAKS, hello, stand, tool
from tests.scripted import Fault, Say, ScriptedModel, Tokens

CLIENTS = ("messages", "responses", "chat")


def target(server: ScriptedModel, speaks: str = "chat", **config: Any) -> Any:
    provider, path = SPEAKS[speaks]
    return resolve(
        provider,
        {
            "model": "m-1",
            "apiKey": server.key,
            "baseUrl": server.url + path,
            "prices": {"m-1": {"input": 10, "output": 100}},
            **config,
        },
    )


# -- tokens -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_token", ["", "rgw_wrong", "sk-ant-something", "rgw_" + "x" * 5000, "ümläut"])
async def test_no_token_no_call(given_token: str) -> None:
    async with ScriptedModel() as model, stand(model, "messages") as here:
        status, headers, body = await here.ask("messages", hello("messages"), authorization=f"Bearer {given_token}")
        assert (status, headers["x-should-retry"]) == (401, "false")
        assert json.loads(body)["error"]["type"] == "authentication_error"
        assert not model.seen
        assert not here.events


@pytest.mark.parametrize("header", ["x-api-key", "x-goog-api-key"])
async def test_a_token_in_any_of_the_clients_headers(header: str) -> None:
    async with ScriptedModel([Say("ok")]) as model, stand(model, "messages") as here, aiohttp.ClientSession() as bare:
        async with bare.post(
            here.server.url + "/v1/messages", json=hello("messages"), headers={header: here.token}
        ) as response:
            assert response.status == 200
        assert here.token not in json.dumps(model.seen[0].headers)


async def test_a_token_ends() -> None:
    async with ScriptedModel([Say("ok")]) as model, stand(model, "chat", RunLimits(lifetime_s=60)) as here:
        assert (await here.ask("chat", hello("chat")))[0] == 200
        here.gateway._runs["run_1"]._expires -= 61
        assert (await here.ask("chat", hello("chat")))[0] == 401
        totals = await here.gateway.revoke("run_1")
        assert (totals.calls, totals.usage.input_tokens) == (1, 700)
        with pytest.raises(RunraError, match="not in the gateway"):
            here.gateway.totals("run_1")


async def test_revoking_cuts_off_calls_under_way() -> None:
    async with ScriptedModel([Fault("endless")]) as model, stand(model, "messages") as here:
        async with here.session.post(
            here.server.url + "/v1/messages", json=hello("messages"), headers=here.headers
        ) as response:
            assert await response.content.readany()
            totals = await here.gateway.revoke("run_1")
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        async with asyncio.timeout(5):
            await model.seen[0].gone.wait()
        assert totals.calls == 1
        assert (here.events[0]["status"], here.events[0]["estimated"]) == ("cancelled", True)
        assert (await here.ask("messages", hello("messages")))[0] == 401


async def test_runs_are_apart() -> None:
    async with ScriptedModel([Say("ok")]) as model, stand(model, "chat") as here:
        other: list[dict[str, Any]] = []
        second = await here.gateway.admit("run_2", target(model, model="m-2"), emit=lambda _, data: other.append(data))
        assert second.token != here.token
        assert second.token not in repr(second)
        assert (await here.ask("chat", hello("chat"), authorization=f"Bearer {second.token}"))[0] == 200
        assert (len(here.events), len(other), model.seen[0].body["model"]) == (0, 1, "m-2")
        with pytest.raises(RunraError, match="already"):
            await here.gateway.admit("run_2", target(model), emit=lambda *_: None)


# -- limits -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", CLIENTS)
async def test_a_spent_budget_stops_an_agent(format: str) -> None:
    async with (
        ScriptedModel([Say("ok", tokens=Tokens(1000, 0, 0, 100))]) as model,
        stand(model, "chat", RunLimits(max_cost=0.03)) as here,
    ):
        assert [(await here.ask(format, hello(format)))[0] for _ in range(3)] == [200, 200, 400]
        status, headers, body = await here.ask(format, hello(format))
        error = json.loads(body)["error"]
        assert (status, headers["x-should-retry"]) == (400, "false")
        assert "has spent its budget: 0.0400 of 0.0300" in error["message"]
        assert error["type"] == "invalid_request_error"
        assert len(model.seen) == len(here.events) == 2
        assert here.events[-1]["totalCost"] == pytest.approx(0.04)


@pytest.mark.parametrize(
    ("format", "speaks"), [("messages", "messages"), ("messages", "chat"), ("chat", "chat"), ("responses", "gemini")]
)
async def test_a_budget_ends_an_answer_in_the_middle(format: str, speaks: str) -> None:
    limits = RunLimits(max_cost=0.2)
    async with ScriptedModel([Fault("endless")]) as model, stand(model, speaks, limits) as here:
        async with asyncio.timeout(30):
            status, _, body = await here.ask(format, hello(format))
        assert status == 200
        assert b"budget" in body[-2000:]
        (event,) = here.events
        assert (event["status"], event["error"], event["estimated"]) == ("stopped", "budget", True)
        assert 0.2 <= event["cost"] < 0.4
        async with asyncio.timeout(5):
            await model.seen[0].gone.wait()


async def test_turns_count_calls_with_tools_only() -> None:
    async with ScriptedModel([Say("ok")]) as model, stand(model, "chat", RunLimits(max_turns=1)) as here:
        with_tools = hello("chat", tools=[tool("chat")])
        assert (await here.ask("chat", hello("chat")))[0] == 200
        assert (await here.ask("chat", with_tools))[0] == 200
        status, _, body = await here.ask("chat", with_tools)
        assert (status, b"has made its 1 turns" in body) == (400, True)
        assert (await here.ask("chat", hello("chat")))[0] == 200
        assert len(model.seen) == 3


async def test_rate_and_concurrency_are_retryable() -> None:
    async with (
        ScriptedModel([Say("ok", pause=0.2)]) as model,
        stand(model, "chat", RunLimits(calls_per_minute=3, concurrent=2)) as here,
    ):
        answers = await asyncio.gather(*(here.ask("chat", hello("chat")) for _ in range(3)))
        assert sorted(status for status, _, _ in answers) == [200, 200, 429]
        assert (await here.ask("chat", hello("chat")))[0] == 200
        status, headers, _ = await here.ask("chat", hello("chat"))
        assert (status, "x-should-retry" in headers) == (429, False)
        assert int(headers["retry-after"]) >= 1
        assert len(model.seen) == 3


async def test_a_budget_needs_a_price() -> None:
    gateway = Gateway()
    unpriced = resolve("custom", {"model": "m", "baseUrl": "https://models.example", "apiKey": "k"})
    with pytest.raises(RunraError, match="price of m is not known"):
        await gateway.admit("r", unpriced, emit=lambda *_: None, limits=RunLimits(max_cost=1))
    await gateway.admit("r", unpriced, emit=lambda *_: None)
    await gateway.close()


# -- passed on ----------------------------------------------------------------------------------------------------------


async def test_what_is_passed_on_is_true_to_the_byte() -> None:
    said = '{ "max_tokens":1e3,\n\t"model" : "claude-x", "messages":[{"role":"user","content":"\\u00e4\\/ é 1.0"}],"temperature":1.0, "stream":true}'
    async with ScriptedModel([Say("ok", tokens=Tokens(10, 0, 0, 5))]) as model, stand(model, "messages") as here:
        headers = {
            "anthropic-beta": "some-beta",
            "openai-organization": "someone-elses",
            "x-forwarded-for": "1.2.3.4",
            "cookie": "a=b",
        }
        _, _, body = await here.ask("messages", said.encode(), **headers)
        seen = model.seen[0]
        assert seen.raw.decode() == said.replace("claude-x", "m-1")
        assert seen.headers["x-api-key"] == model.key
        assert seen.headers["anthropic-beta"] == "some-beta"
        assert not {"openai-organization", "x-forwarded-for", "cookie", "authorization"} & set(seen.headers)
        assert seen.headers["host"] == model.url.removeprefix("http://")
    async with (
        ScriptedModel([Say("ok", tokens=Tokens(10, 0, 0, 5))]) as again,
        aiohttp.ClientSession() as direct,
        direct.post(again.url + "/v1/messages", data=seen.raw, headers={"x-api-key": again.key}) as response,
    ):
        assert await response.read() == body


@pytest.mark.parametrize("asked", [True, False])
async def test_a_chat_stream_is_counted_without_the_client_noticing(asked: bool) -> None:
    async with ScriptedModel([Say("ok")]) as model, stand(model, "chat") as here:
        more = {"stream_options": {"include_usage": True}} if asked else {}
        _, _, body = await here.ask("chat", hello("chat", **more))
        assert model.seen[0].body["stream_options"] == {"include_usage": True}
        assert (b'"usage"' in body) == asked
        assert body.endswith(b"data: [DONE]\n\n")
        assert here.events[0]["inputTokens"] == 700


fields = st.dictionaries(
    st.text(max_size=5),
    st.recursive(
        st.none() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=8,
    ),
    max_size=6,
)


@given(
    body=fields,
    changes=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    indent=st.none() | st.integers(0, 3),
    ascii=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_a_body_changes_only_where_it_must(
    body: dict[str, Any], changes: dict[str, Any], indent: int | None, ascii: bool
) -> None:
    raw = json.dumps(body, indent=indent, ensure_ascii=ascii).encode(errors="replace")
    parsed = parse(raw)
    assert parsed.value == json.loads(raw)
    assert json.loads(parsed.replaced(changes)) == {**json.loads(raw), **changes}
    assert parsed.replaced({}) == raw


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{",
        b'{"a":1,}',
        b'{"a" 1}',
        b'{"a":1}x',
        b'{"model":"a","model":"b"}',
        b'{"tools":[{"type":"a","type":"b"}]}',
        b"\xff{}",
        b'{"a":' + b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
async def test_bodies_that_are_refused(raw: bytes) -> None:
    async with ScriptedModel() as model, stand(model, "chat") as here:
        status, _, body = await here.ask("chat", raw)
        assert (status, b"is no JSON object" in body) == (400, True)
        assert not model.seen


async def test_a_body_has_a_bound() -> None:
    async with ScriptedModel() as model, stand(model, "chat") as here:
        status, _, body = await here.ask("chat", b'{"a":"' + b"x" * (33 << 20) + b'"}')
        assert (status, b"longer than 32 MiB" in body) == (400, True)


@pytest.mark.parametrize(
    ("format", "more", "named"),
    [
        ("messages", {"mcp_servers": [{"url": "https://x"}]}, "mcp_servers"),
        (
            "messages",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "source": {"type": "url", "url": "https://evil/?secret"}}],
                    }
                ]
            },
            "url.url",
        ),
        ("responses", {"previous_response_id": "resp_1"}, "previous_response_id"),
        ("responses", {"background": True}, "background"),
        ("responses", {"service_tier": "priority"}, "service_tier"),
        ("messages", {"speed": "fast"}, "speed"),
        (
            "responses",
            {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]},
            "input_file.file_id",
        ),
        (
            "chat",
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://evil/?secret"}}]}
                ]
            },
            "content.url",
        ),
    ],
)
async def test_a_sandbox_does_not_reach_out_through_the_provider(format: str, more: dict[str, Any], named: str) -> None:
    for speaks in (format, "gemini"):
        async with ScriptedModel() as model, stand(model, speaks) as here:
            status, _, body = await here.ask(format, hello(format, **more))
            assert (status, named in json.loads(body)["error"]["message"]) == (400, True), body
            assert not model.seen
    async with ScriptedModel() as model, stand(model, format, RunLimits(server_tools="allow")) as here:
        assert (await here.ask(format, hello(format, **more)))[0] == 200


@pytest.mark.parametrize(
    ("policy", "status", "kept"),
    [("drop", 200, ["bash"]), ("refuse", 400, None), ("allow", 200, ["bash", "web_search", "n"])],
)
async def test_server_tools(policy: Any, status: int, kept: list[str] | None) -> None:
    hidden = {"type": "namespace", "name": "n", "tools": [{"type": "web_search"}]}
    tools = [tool("responses"), {"type": "web_search", "external_web_access": True}, hidden]
    async with ScriptedModel() as model, stand(model, "responses", RunLimits(server_tools=policy)) as here:
        assert (await here.ask("responses", hello("responses", tools=tools)))[0] == status
        assert [seen.tools for seen in model.seen] == ([kept] if kept else [])


def test_what_a_model_lacks_is_known_before_the_run() -> None:
    claude = resolve("anthropic", {"model": "claude-opus-4-8", "apiKey": "k"})
    local = resolve("vllm", {"model": "m", "images": False})
    needs = ["text", "tools", "parallel_tools", "images", "thinking", "web_search"]
    assert unsupported("messages", claude, needs) == ["web_search"]
    assert unsupported("messages", claude, needs, RunLimits(server_tools="allow")) == []
    assert unsupported("messages", local, needs) == ["images", "web_search"]
    assert unsupported("messages", local, ["telepathy", "documents"]) == ["documents", "telepathy"]


# -- faults -------------------------------------------------------------------------------------------------------------

SPOKEN = pytest.mark.parametrize("speaks", ["messages", "responses", "chat", "gemini"])


@SPOKEN
@pytest.mark.parametrize("fault", [Fault("429", retry_after=0.05), Fault("500"), Fault("reset")])
async def test_retries_before_the_first_byte(speaks: str, fault: Fault) -> None:
    async with ScriptedModel([fault, Say("ok")]) as model, stand(model, speaks) as here:
        assert (await here.ask("messages", hello("messages")))[0] == 200
        assert len(model.seen) == 2
        (event,) = here.events
        assert (event["status"], event["retries"], event["inputTokens"]) == ("ok", 1, 700)


@SPOKEN
@pytest.mark.parametrize("format", CLIENTS)
@pytest.mark.parametrize("then", ["cut", "error"])
async def test_an_answer_that_breaks_is_told_and_paid_for(speaks: str, format: str, then: Any) -> None:
    say = Say("word " * 40, pieces=40, then=then, cut_after=20, pause=0.002)
    async with ScriptedModel([say]) as model, stand(model, speaks) as here:
        status, _, body = await here.ask(format, hello(format))
        assert status == 200
        assert b"word" in body
        last = {"messages": b"event: error", "responses": b"response.failed", "chat": b'"error"'}[format]
        assert last in body
        assert not body.endswith(b"[DONE]\n\n")
        (event,) = here.events
        assert (event["status"], event["error"], event["estimated"]) == ("failed", "unavailable", True)
        assert event["inputTokens"] > 0
        assert event["outputTokens"] >= 10
        assert event["cost"] > 0
        assert len(model.seen) == 1


@SPOKEN
@pytest.mark.parametrize("format", CLIENTS)
async def test_garbage_is_an_error_not_an_answer(speaks: str, format: str) -> None:
    async with ScriptedModel([Fault("garbage")]) as model, stand(model, speaks, maxRetries=0) as here:
        for stream in (True, False):
            status, _, body = await here.ask(format, hello(format, stream))
            assert status == 502 or b"broke off" in body
        assert {event["status"] for event in here.events} == {"failed"}


@SPOKEN
@pytest.mark.parametrize("stream", [True, False])
async def test_a_model_that_hangs_after_its_last_event(speaks: str, stream: bool) -> None:
    async with ScriptedModel([Say("done", pieces=1, then="hang")]) as model, stand(model, speaks) as here:
        async with asyncio.timeout(10):
            status, _, body = await here.ask("chat", hello("chat", stream))
        assert (status, b"done" in body) == (200, True)
        assert here.events[0]["status"] == "ok"


@SPOKEN
async def test_a_client_that_goes_away_cancels_the_call(speaks: str) -> None:
    async with ScriptedModel([Fault("endless")]) as model, stand(model, speaks) as here:
        async with here.session.post(
            here.server.url + "/v1/messages", json=hello("messages"), headers=here.headers
        ) as response:
            await response.content.readany()
            response.close()
        async with asyncio.timeout(5):
            await model.seen[0].gone.wait()
            while not here.events:
                await asyncio.sleep(0.01)
        assert (here.events[0]["status"], here.events[0]["estimated"]) == ("cancelled", True)
        assert here.events[0]["cost"] > 0  # who hangs up early pays all the same


@pytest.mark.parametrize("speaks", ["messages", "chat"])
async def test_a_client_that_reads_slowly_holds_the_model_back(speaks: str) -> None:
    """Constant memory: what the client does not take stays with the model."""
    flood = Say("x" * 60_000, repeat=2000, pieces=1)  # 120 MB
    async with (
        ScriptedModel([flood]) as model,
        stand(model, speaks) as here,
        here.session.post(here.server.url + "/v1/messages", json=hello("messages"), headers=here.headers) as response,
    ):
        await response.content.readany()
        await asyncio.sleep(1.0)  # time to take far more than the bound, if nothing held it back
        (call,) = here.gateway._runs["run_1"].calls
        assert 0 < call.characters < 30_000_000
        response.close()


async def test_deadlines() -> None:
    async with (
        ScriptedModel([Fault("slow")]) as model,
        stand(model, "chat", maxRetries=0, timeouts={"firstByteMs": 200}) as here,
    ):
        began = time.monotonic()
        status, _, _ = await here.ask("messages", hello("messages"))
        assert status == 503
        assert time.monotonic() - began < 5
    gateway = Gateway()
    server = GatewayServer(gateway)
    with pytest.raises(RunraError, match="cannot listen"):
        await server.start(host="203.0.113.1", port=1)


# -- the key ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaks", ["messages", "responses", "chat", "gemini"])
async def test_the_key_is_seen_nowhere(speaks: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong, and even where the provider repeats it: not in answers, events, errors or logs."""
    canary = "sk-canary-7f3a9c51d2"
    faults = [Fault(kind) for kind in ("401", "403", "400", "429", "500", "reset", "garbage", "context")]
    echo = [Say(f"your key is {canary} indeed", pieces=pieces) for pieces in (1, 7, 29)]
    script = [*faults, *echo]
    with caplog.at_level(logging.DEBUG):
        async with ScriptedModel(script, key=canary) as model, stand(model, speaks, maxRetries=0) as here:
            told = b""
            for _ in script:
                _, headers, body = await here.ask("messages", hello("messages"))
                told += json.dumps(headers).encode() + body + b"\n"
            assert (await here.ask("chat", hello("chat")))[0] == 200
            assert any(
                canary in seen.headers.get(name, "")
                for seen in model.seen
                for name in ("x-api-key", "authorization", "x-goog-api-key")
            )
    if speaks == "messages":
        assert b"your key is" in told
        assert canary.encode() not in told
    assert canary.encode() not in told
    assert canary not in json.dumps(here.events)
    ours = [record for record in caplog.records if record.name.startswith("runra")]
    assert ours
    assert canary not in "\n".join(record.getMessage() for record in ours)
    assert here.token not in "\n".join(record.getMessage() for record in ours)


@given(text=st.text("sk-canry", max_size=60), data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_secret_cut_anywhere_is_taken_out(text: str, data: st.DataObject) -> None:
    secret = "sk-canary"
    text = data.draw(st.sampled_from([text, text + secret, secret + text, text[:5] + secret + text[5:]]))
    whole = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=20)))
    redactor = Redactor(secret)
    written = (
        b"".join(redactor.feed(whole[a:b]) for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True))
        + redactor.finish()
    )
    assert written == whole.replace(secret.encode(), b"***")


# -- doors --------------------------------------------------------------------------------------------------------------


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "gateway.sock"
    async with ScriptedModel([Say("ok")]) as model:
        gateway = Gateway()
        server = GatewayServer(gateway)
        await server.start(socket=path)
        assert path.stat().st_mode & 0o777 == 0o600
        admission = await gateway.admit("r", target(model), emit=lambda *_: None)
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
            session.post(
                "http://gateway/v1/messages", json=hello("messages"), headers={"x-api-key": admission.token}
            ) as response,
        ):
            assert response.status == 200
        await gateway.close()
        await server.stop()
        assert not path.exists()


async def test_mounted_in_a_server() -> None:
    async with ScriptedModel([Say("ok", pieces=1), Fault("endless")]) as model:
        gateway = Gateway()
        events: list[dict[str, Any]] = []
        admission = await gateway.admit("r", target(model), emit=lambda _, data: events.append(data))
        app = FastAPI()
        app.mount("/models", GatewayApp(gateway))
        served = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
        task = asyncio.create_task(served.serve())
        try:
            async with asyncio.timeout(10):
                while not served.started:
                    await asyncio.sleep(0.01)
            url = f"http://127.0.0.1:{served.servers[0].sockets[0].getsockname()[1]}/models"
            headers = {"x-api-key": admission.token}
            async with aiohttp.ClientSession() as session:
                async with session.post(url + "/v1/messages", json=hello("messages"), headers=headers) as response:
                    assert (response.status, b"ok" in await response.read()) == (200, True)
                async with session.post(
                    url + "/v1/messages", json=hello("messages"), headers={"x-api-key": "no"}
                ) as response:
                    assert response.status == 401
                async with session.post(url + "/v1/messages", json=hello("messages"), headers=headers) as response:
                    await response.content.readany()
                    response.close()
                async with asyncio.timeout(5):
                    await model.seen[1].gone.wait()
            assert [event["status"] for event in events] == ["ok", "cancelled"]
        finally:
            await gateway.close()
            served.should_exit = True
            await task


async def test_models_counts_and_unknown_paths() -> None:
    async with ScriptedModel() as model, stand(model, "chat") as here:
        async with here.session.get(here.server.url + "/v1/models", headers=here.headers) as response:
            assert [one["id"] for one in (await response.json())["data"]] == ["m-1"]
        async with here.session.get(here.server.url + "/health") as response:
            assert response.status == 200
        async with here.session.post(here.server.url + "/v1/files", headers=here.headers) as response:
            assert response.status == 404
        counting = here.server.url + "/v1/messages/count_tokens"
        async with here.session.post(counting, json=hello("messages"), headers=here.headers) as response:
            assert 10 < (await response.json())["input_tokens"] < 100
        assert not here.events
    limits = RunLimits(calls_per_minute=2)
    async with ScriptedModel() as model, stand(model, "messages", limits) as here:
        counting = here.server.url + "/v1/messages/count_tokens"
        async with here.session.post(counting, json=hello("messages"), headers=here.headers) as response:
            assert await response.json() == {"input_tokens": 1234}
        outside = {"type": "image", "source": {"type": "url", "url": "https://evil/?secret"}}
        reaching = hello("messages", messages=[{"role": "user", "content": [outside]}])
        for status in (400, 429):  # no way out by this door either, nor without a bound
            async with here.session.post(counting, json=reaching, headers=here.headers) as response:
                assert response.status == status


async def test_several_models_in_one_run() -> None:
    async with ScriptedModel([Say("ok")]) as model, ScriptedModel([Say("ok")]) as small:
        gateway = Gateway()
        server = GatewayServer(gateway)
        url = await server.start()
        routes = {
            "claude-haiku": target(small, "gemini", model="m-small", prices={"m-small": {"input": 1, "output": 1}})
        }
        admission = await gateway.admit("r", target(model), emit=lambda *_: None, models=routes)
        async with aiohttp.ClientSession(headers={"x-api-key": admission.token}) as session:
            for name in ("claude-haiku", "claude-opus"):
                async with session.post(url + PATHS["messages"], json={**hello("messages"), "model": name}) as response:
                    assert response.status == 200
        assert (len(model.seen), len(small.seen)) == (1, 1)
        totals = await gateway.revoke("r")
        assert set(totals.models) == {"m-1", "m-small"}
        await gateway.close()
        await server.stop()


async def test_signatures_of_calls_come_back() -> None:
    """Gemini wants a call's signature back; a client of another format has no place for it, so the run keeps it."""
    async with ScriptedModel([Say(tools=[("bash", {"command": "ls"})])]) as model, stand(model, "gemini") as here:
        _, _, body = await here.ask("chat", hello("chat", False, tools=[tool("chat")]))
        message = json.loads(body)["choices"][0]["message"]
        result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "x"}
        history = [{"role": "user", "content": "hi"}, message, result]
        await here.ask("chat", {**hello("chat", tools=[tool("chat")]), "messages": history})
        assert model.seen[1].body["contents"][1]["parts"][0]["thoughtSignature"] == "dGhvdWdodA=="
