"""The seven providers against a server that speaks their formats: answers, errors by kind, retries, deadlines."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from runra.errors import RunraError
from runra.runtime.llms import Delta, Finished, LLMResponse, ModelProvider
from runra.runtime.providers import LLMProvider
from runra.runtime.registry import LLMS
from tests.scripted import Fault, Say, ScriptedModel, Step, Tokens

#: Every provider, and every format that one has.
CASES = [
    ("anthropic", None, ""),
    ("openai", None, "/v1"),
    ("openai", "chat", "/v1"),
    ("gemini", None, "/v1beta"),
    ("openrouter", None, "/v1"),
    ("ollama", None, "/v1"),
    ("vllm", None, "/v1"),
    ("custom", "chat", "/v1"),
    ("custom", "messages", "/v1"),
]
TOOL = {
    "name": "bash",
    "description": "runs",
    "input_schema": {"type": "object", "properties": {"command": {"type": "string"}}},
}
HI: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]}


@asynccontextmanager
async def model_at(
    server: ScriptedModel, provider: str, format: str | None, path: str, **config: Any
) -> AsyncIterator[ModelProvider]:
    model: ModelProvider = LLMS.create(provider)
    assert isinstance(model, LLMProvider)
    await model.initialize(
        {
            "model": "m-1",
            "baseUrl": server.url + path,
            "apiKey": server.key,
            "prices": {"m-1": {"input": 2, "output": 10}},
            **({"format": format} if format else {}),
            **config,
        }
    )
    try:
        yield model
    finally:
        await model.dispose()


@pytest.mark.parametrize(("provider", "format", "path"), CASES)
async def test_a_conversation_with_tools(provider: str, format: str | None, path: str) -> None:
    first = Say(
        "I look.",
        [("bash", {"command": "ls"}), ("bash", {"command": "pwd"})],
        thinking="hm",
        tokens=Tokens(1000, 500, 0, 100, 20),
    )
    async with ScriptedModel([first, Say("two files")]) as server, model_at(server, provider, format, path) as model:
        answer = await model.chat({**HI, "systemPrompt": "Be brief.", "tools": [TOOL], "maxTokens": 4000})
        assert (answer.content, answer.stop_reason) == ("I look.", "tool_use")
        assert [call.input for call in answer.tool_calls] == [{"command": "ls"}, {"command": "pwd"}]
        assert (answer.usage.input_tokens, answer.usage.cache_read_tokens, answer.usage.output_tokens) == (
            1000,
            500,
            100,
        )
        assert answer.cost == pytest.approx((1500 * 2 + 100 * 10) / 1e6)
        results = [{"type": "tool_result", "id": call.id, "content": "a b"} for call in answer.tool_calls]
        again = await model.chat(
            {"messages": [*HI["messages"], answer.message(), {"role": "user", "content": results}], "tools": [TOOL]}
        )
        assert again.content == "two files"
        assert server.seen[1].answered_tools
        assert again.stop_reason == "end_turn"


@pytest.mark.parametrize(("provider", "format", "path"), CASES)
async def test_streams(provider: str, format: str | None, path: str) -> None:
    async with (
        ScriptedModel([Say("one two three", pieces=3)]) as server,
        model_at(server, provider, format, path) as model,
    ):
        events = [event async for event in model.stream(HI)]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "one two three"
    assert sum(isinstance(event, Delta) for event in events) == 3
    assert isinstance(events[-1], Finished)
    assert events[-1].response.content == "one two three"


FAULTS = [
    ("401", "UNAUTHORIZED", "auth", False),
    ("403", "UNAUTHORIZED", "auth", False),
    ("400", "INVALID_REQUEST", "invalid", False),
    ("context", "INVALID_REQUEST", "context_too_long", False),
    ("refused", "INVALID_REQUEST", "refused", False),
    ("429", "RATE_LIMITED", "rate_limit", True),
    ("500", "RESOURCE_EXHAUSTED", "unavailable", True),
    ("529", "RESOURCE_EXHAUSTED", "unavailable", True),
    ("reset", "NETWORK_ERROR", "unavailable", True),
    ("garbage", "INTERNAL_ERROR", "protocol", True),
]


@pytest.mark.parametrize(("kind", "code", "named", "retryable"), FAULTS)
@pytest.mark.parametrize(
    ("provider", "format", "path"), [case for case in CASES if case[0] in ("anthropic", "openai", "gemini")]
)
async def test_errors_by_kind(
    provider: str, format: str | None, path: str, kind: str, code: str, named: str, retryable: bool
) -> None:
    script = [Fault(kind, retry_after=7 if kind == "429" else None)]
    async with ScriptedModel(script) as server, model_at(server, provider, format, path, maxRetries=0) as model:
        with pytest.raises(RunraError) as caught:
            await model.chat(HI)
        assert (caught.value.code, caught.value.details["kind"], caught.value.retryable) == (code, named, retryable)
        if kind == "429":
            assert caught.value.details["retryAfterMs"] == 7000
        assert server.key not in repr(caught.value) + str(caught.value) + json.dumps(caught.value.to_wire())


@pytest.mark.parametrize("fault", [Fault("429", retry_after=0.05), Fault("500"), Fault("reset")])
async def test_retries_before_the_first_byte(fault: Fault) -> None:
    async with ScriptedModel([fault, Say("fine")]) as server, model_at(server, "anthropic", None, "") as model:
        assert (await model.chat(HI)).content == "fine"
        assert len(server.seen) == 2


@pytest.mark.parametrize("fault", [Fault("429", retry_after=3600), Fault("400"), Fault("401")])
async def test_what_is_not_tried_again(fault: Fault) -> None:
    async with ScriptedModel([fault]) as server, model_at(server, "anthropic", None, "") as model:
        began = time.monotonic()
        with pytest.raises(RunraError):
            await model.chat(HI)
        assert len(server.seen) == 1
        assert time.monotonic() - began < 5


@pytest.mark.parametrize(("provider", "format", "path"), CASES[:4])
@pytest.mark.parametrize("then", ["cut", "error"])
async def test_a_stream_that_breaks(provider: str, format: str | None, path: str, then: Any) -> None:
    say = Say("word " * 20, pieces=20, then=then, cut_after=6)
    async with ScriptedModel([say]) as server, model_at(server, provider, format, path) as model:
        with pytest.raises(RunraError) as caught:
            await model.chat(HI)
        assert caught.value.details["kind"] == "unavailable"
        assert len(server.seen) == 1  # what had begun is not begun again: it would be paid twice


@pytest.mark.parametrize(("provider", "format", "path"), CASES[:4])
async def test_a_server_that_hangs_after_its_last_event(provider: str, format: str | None, path: str) -> None:
    async with ScriptedModel([Say("done", then="hang")]) as server, model_at(server, provider, format, path) as model:
        async with asyncio.timeout(10):
            assert (await model.chat(HI)).content == "done"


@pytest.mark.parametrize("fault", [Fault("slow"), Fault("silent")])
async def test_deadline_of_the_first_byte(fault: Fault) -> None:
    async with (
        ScriptedModel([fault]) as server,
        model_at(server, "openai", "chat", "/v1", timeouts={"firstByteMs": 200}) as model,
    ):
        with pytest.raises(RunraError, match=r"nothing within 0\.2 s"):
            await model.chat(HI)
        assert len(server.seen) == 1


async def test_deadline_between_pieces_and_in_all() -> None:
    slow: list[Step] = [Say("x" * 100, pieces=100, pause=5)]
    async with (
        ScriptedModel(slow) as server,
        model_at(server, "openai", "chat", "/v1", timeouts={"idleMs": 200}) as model,
    ):
        with pytest.raises(RunraError, match=r"nothing for 0\.2 s"):
            await model.chat(HI)
    async with (
        ScriptedModel([Fault("endless")]) as server,
        model_at(server, "openai", "chat", "/v1", timeouts={"totalMs": 500}) as model,
    ):
        with pytest.raises(RunraError, match=r"more than 0\.5 s in all"):
            await model.chat(HI)


async def test_leaving_a_stream_cancels_the_call() -> None:
    async with ScriptedModel([Fault("endless")]) as server, model_at(server, "anthropic", None, "") as model:
        stream = model.stream(HI)
        async for event in stream:
            if isinstance(event, Delta):
                break
        await stream.aclose()  # type: ignore[attr-defined]
        async with asyncio.timeout(5):
            await server.seen[0].gone.wait()


async def test_refusal_is_an_error() -> None:
    async with ScriptedModel([Say("no", stop="refusal")]) as server, model_at(server, "openai", None, "/v1") as model:
        with pytest.raises(RunraError) as caught:
            await model.chat(HI)
        assert caught.value.details["kind"] == "refused"


@pytest.mark.parametrize(("provider", "format", "path"), CASES[:4])
async def test_json_answers(provider: str, format: str | None, path: str) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    request = {**HI, "output": {"jsonSchema": schema}}
    async with (
        ScriptedModel([Say('{"n": 7}'), Say("seven")]) as server,
        model_at(server, provider, format, path) as model,
    ):
        assert (await model.chat(request)).data == {"n": 7}
        assert json.dumps(schema) in json.dumps(server.seen[0].body)
        with pytest.raises(RunraError, match="no JSON"):
            await model.chat(request)


async def test_what_is_wrong_with_a_request_is_named() -> None:
    model = ModelProvider("vllm")
    with pytest.raises(RunraError, match="initialize it first"):
        await model.chat(HI)
    await model.initialize({"model": "m", "images": False})
    with pytest.raises(RunraError, match=r"messages\.0\.role"):
        await model.chat({"messages": [{"role": "robot", "content": "x"}]})
    image = {"type": "image", "mediaType": "image/png", "data": "AA=="}
    with pytest.raises(RunraError) as caught:
        await model.chat({"messages": [{"role": "user", "content": [image]}]})
    assert caught.value.details["features"] == ["images"]


async def test_the_seeds_own_shapes() -> None:
    """A request in the document's camelCase and an answer that goes over a wire in it."""
    async with ScriptedModel([Say("ok")]) as server, model_at(server, "vllm", None, "/v1") as model:
        answer = await model.chat(
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    {"role": "user", "content": [{"type": "text", "text": "hi"}]},
                ],
                "maxTokens": 9,
                "temperature": 0,
            }
        )
    wire = answer.to_wire()
    assert wire["content"] == "ok"
    assert wire["stopReason"] == "end_turn"
    assert wire["usage"]["inputTokens"] == 700
    assert LLMResponse.model_validate(wire).content == "ok"
    assert server.seen[0].body["max_tokens"] == 9
    assert server.seen[0].body["messages"][0] == {"role": "system", "content": "s"}
