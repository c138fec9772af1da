"""The makers' own clients as judges: of the stand-in server, and of what the gateway says in each format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from google import genai
from google.genai import types as gemini
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import TypeAdapter, with_config

from tests.gateway.conftest import stand, tool
from tests.scripted import Fault, Say, ScriptedModel, Tokens

SPOKEN = ("messages", "responses", "chat", "gemini")
STREAMED = pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
ANSWER = Say(
    "I look.",
    [("bash", {"command": "ls"}), ("bash", {"command": "pwd"})],
    thinking="hm",
    tokens=Tokens(1000, 500, 0, 100, 20),
)


async def through_anthropic(url: str, key: str, stream: bool) -> tuple[str, list[Any], int]:
    async with anthropic.AsyncAnthropic(base_url=url, api_key=key, max_retries=0) as client:
        asked: Any = {
            "model": "any",
            "max_tokens": 1000,
            "messages": [{"role": "user", "content": "hi"}],
            "tools": [tool("messages")],
        }
        if stream:
            async with client.messages.stream(**asked) as streamed:
                message = await streamed.get_final_message()
        else:
            message = await client.messages.create(**asked)
    assert message.stop_reason == "tool_use"
    text = "".join(block.text for block in message.content if block.type == "text")
    calls = [block.input for block in message.content if block.type == "tool_use"]
    assert message.usage.cache_read_input_tokens == 500
    return text, calls, message.usage.output_tokens


async def through_responses(url: str, key: str, stream: bool) -> tuple[str, list[Any], int]:
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=key, max_retries=0) as client:
        asked: Any = {"model": "any", "input": "hi", "tools": [tool("responses")], "store": False}
        if stream:
            async with client.responses.stream(**asked) as streamed:
                response = await streamed.get_final_response()
        else:
            response = await client.responses.create(**asked)
    assert response.status == "completed"
    assert response.usage is not None
    assert response.usage.input_tokens_details.cached_tokens == 500
    return (
        response.output_text,
        [json.loads(item.arguments) for item in response.output if item.type == "function_call"],
        response.usage.output_tokens,
    )


async def through_chat(url: str, key: str, stream: bool) -> tuple[str, list[Any], int]:
    async with openai.AsyncOpenAI(base_url=url + "/v1", api_key=key, max_retries=0) as client:
        asked: Any = {"model": "any", "messages": [{"role": "user", "content": "hi"}], "tools": [tool("chat")]}
        if stream:
            async with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as streamed:
                completion: Any = await streamed.get_final_completion()
        else:
            completion = await client.chat.completions.create(**asked)
    choice = completion.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert completion.usage.prompt_tokens_details.cached_tokens == 500
    return (
        choice.message.content,
        [json.loads(call.function.arguments) for call in choice.message.tool_calls],
        completion.usage.completion_tokens,
    )


CLIENTS = {"messages": through_anthropic, "responses": through_responses, "chat": through_chat}


@STREAMED
@pytest.mark.parametrize("client", CLIENTS)
async def test_the_stand_in_speaks_truly(client: str, stream: bool) -> None:
    async with ScriptedModel([ANSWER]) as model:
        assert await CLIENTS[client](model.url, model.key, stream) == (
            "I look.",
            [{"command": "ls"}, {"command": "pwd"}],
            100,
        )


@STREAMED
async def test_the_stand_in_speaks_gemini_truly(stream: bool) -> None:
    async with ScriptedModel([ANSWER]) as model:
        client = genai.Client(api_key=model.key, http_options=gemini.HttpOptions(base_url=model.url))
        if stream:
            chunks = [
                chunk async for chunk in await client.aio.models.generate_content_stream(model="m-1", contents="hi")
            ]
        else:
            chunks = [await client.aio.models.generate_content(model="m-1", contents="hi")]
        calls = [call.args for chunk in chunks for call in chunk.function_calls or []]
        assert calls == [{"command": "ls"}, {"command": "pwd"}]
        assert chunks[-1].usage_metadata is not None
        assert chunks[-1].usage_metadata.thoughts_token_count == 20
        await client.aio.aclose()


@STREAMED
@pytest.mark.parametrize("speaks", SPOKEN)
@pytest.mark.parametrize("client", CLIENTS)
async def test_every_client_on_every_model(client: str, speaks: str, stream: bool) -> None:
    async with ScriptedModel([ANSWER]) as model, stand(model, speaks) as here:
        assert await CLIENTS[client](here.server.url, here.token, stream) == (
            "I look.",
            [{"command": "ls"}, {"command": "pwd"}],
            100,
        )
        (event,) = here.events
        assert (event["inputTokens"], event["cacheReadTokens"], event["outputTokens"]) == (1000, 500, 100)
        assert (event["status"], event["turn"], event["estimated"], event["model"], event["requestedModel"]) == (
            "ok",
            True,
            False,
            "m-1",
            "any",
        )
        assert event["cost"] == pytest.approx(0.025)
        assert model.seen[0].body.get("model", "m-1") == "m-1"
        assert here.token not in json.dumps(model.seen[0].headers)


@pytest.mark.parametrize(
    ("fault", "raised", "words"),
    [
        (Fault("401"), anthropic.BadRequestError, "does not accept the API key"),
        (Fault("context"), anthropic.BadRequestError, "prompt is too long"),
        (Fault("429", retry_after=2), anthropic.RateLimitError, "limits the rate"),
        (Fault("529"), anthropic.InternalServerError, "Overloaded"),
    ],
)
@pytest.mark.parametrize("speaks", ["messages", "chat"])
async def test_errors_reach_clients_as_their_own(
    fault: Fault, raised: type[Exception], words: str, speaks: str
) -> None:
    async with ScriptedModel([fault]) as model, stand(model, speaks, maxRetries=0) as here:
        client = anthropic.AsyncAnthropic(base_url=here.server.url, api_key=here.token, max_retries=0)
        with pytest.raises(raised) as caught:
            await client.messages.create(model="m", max_tokens=9, messages=[{"role": "user", "content": "x"}])
        if fault.kind != "529" or speaks == "messages":
            assert words in str(caught.value)
        assert model.key not in str(caught.value)
        await client.close()


FIXTURES = {
    path.stem: json.loads(path.read_text()) for path in sorted((Path(__file__).parent / "fixtures").glob("*.json"))
}
SENT_AS = {"claude-code-2.1.197": "messages", "codex-0.169": "responses", "opencode-1.18": "chat"}
SCHEMAS: dict[str, Any] = {
    "messages": MessageCreateParamsNonStreaming,
    "responses": ResponseCreateParamsNonStreaming,
    "chat": CompletionCreateParamsNonStreaming,
}


@pytest.mark.parametrize("speaks", SPOKEN)
@pytest.mark.parametrize("agent", SENT_AS)
async def test_what_the_agents_really_send(agent: str, speaks: str) -> None:
    """A captured turn of each agent (its words shortened), to each kind of model, checked by the maker's own types."""
    async with ScriptedModel([Say("fine", pieces=1)]) as model, stand(model, speaks) as here:
        status, _, answered = await here.ask(SENT_AS[agent], FIXTURES[agent])
        assert (status, b"fine" in answered) == (200, True), answered
    seen = model.seen[0]
    assert seen.answered_tools
    assert "hello-from-agent" in seen.raw.decode()
    assert not {"web_search"} & set(seen.tools)
    if SENT_AS[agent] == speaks:
        kept = {name: value for name, value in FIXTURES[agent].items() if name not in ("model", "tools")}
        assert {name: value for name, value in seen.body.items() if name not in ("model", "tools")} == kept
        return
    if speaks == "gemini":
        assert [gemini.Content.model_validate(content) for content in seen.body["contents"]]
        assert [gemini.Tool.model_validate(one) for one in seen.body["tools"]]
        gemini.GenerationConfig.model_validate(seen.body.get("generationConfig", {}))
        return
    body = {name: value for name, value in seen.body.items() if name not in ("stream", "stream_options")}
    body.pop("reasoning", None) if speaks == "chat" else None  # OpenRouter's own field
    TypeAdapter(with_config(extra="forbid")(SCHEMAS[speaks])).validate_python(body)
