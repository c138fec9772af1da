"""The wire formats as pure functions: streams cut anywhere, answers and requests there and back again."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runra.errors import RunraError
from runra.runtime.llms.collect import Collector
from runra.runtime.llms.targets import Target, resolve
from runra.runtime.llms.types import (
    BlockEnded,
    BlockStarted,
    Counted,
    Delta,
    Failed,
    ImageBlock,
    LLMRequest,
    LLMResponse,
    Message,
    OutputSchema,
    Started,
    Stopped,
    StreamEvent,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolResultBlock,
    ToolUseBlock,
    Usage,
)
from runra.runtime.llms.wires import READERS, WRITERS
from runra.sdk.sse import EventParser
from tests.scripted import _STREAMS, Say, ScriptedModel, Seen, Tokens

FORMATS = ("messages", "responses", "chat", "gemini")
CLIENTS = ("messages", "responses", "chat")
PROVIDERS = {"messages": "anthropic", "responses": "openai", "chat": "vllm", "gemini": "gemini"}
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()


def target(format: str, **config: Any) -> Target:
    return resolve(PROVIDERS[format], {"model": "m-1", "apiKey": "sk-test-key", **config})


def stream(format: Any, say: Say) -> bytes:
    body = {"model": "m-1", "stream": True, "stream_options": {"include_usage": True}}
    seen = Seen(format, "/v1beta/models/m-1:streamGenerateContent", {}, body, b"")
    return b"".join(_STREAMS[format](ScriptedModel(), seen, say))


def read(format: Any, pieces: list[bytes]) -> tuple[LLMResponse, list[StreamEvent]]:
    parser, decoder, collector, events = EventParser(), READERS[format].decoder(), Collector(format), []
    for piece in pieces:
        for sse in parser.feed(piece):
            for event in decoder.feed(sse):
                events.append(event)
                collector.feed(event)
    assert decoder.done
    return collector.response(), events


FULL = Say(
    "Grüße, ich höre zu. 日本語\n\nund mehr",
    [("bash", {"command": "echo 'ä' && ls"}), ("read", {"path": "/x", "n": [1, 2.5, None, True]})],
    thinking="Let me think\nabout it.",
    tokens=Tokens(uncached=100, cache_read=50, output=30, reasoning=12),
)


@pytest.mark.parametrize("format", FORMATS)
@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_stream_cut_anywhere_reads_alike(format: str, data: st.DataObject) -> None:
    whole = stream(format, FULL)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=40)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    response, events = read(format, pieces)
    assert response.content == FULL.text
    assert [(call.name, call.input) for call in response.tool_calls] == list(FULL.tools)
    assert [block.type for block in response.blocks] == ["thinking", "text", "tool_use", "tool_use"]
    assert response.blocks[0].text == FULL.thinking  # type: ignore[union-attr]
    assert response.stop_reason == "tool_use"
    assert (response.usage.input_tokens, response.usage.cache_read_tokens) == (100, 50)
    assert response.usage.output_tokens == 30
    assert response.usage.reasoning_tokens == (0 if format == "messages" else 12)
    opened = [event.index for event in events if isinstance(event, BlockStarted)]
    closed = [event.index for event in events if isinstance(event, BlockEnded)]
    assert sorted(opened) == sorted(closed) == list(range(4))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("stop", "reason"), [("length", "max_tokens"), ("refusal", "refusal"), (None, "end_turn")])
def test_stop_reasons(format: str, stop: str | None, reason: str) -> None:
    assert read(format, [stream(format, Say("well", stop=stop))])[0].stop_reason == reason


@pytest.mark.parametrize("format", FORMATS)
@given(
    garbage=st.binary(max_size=300),
    values=st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "type",
                        "choices",
                        "delta",
                        "message",
                        "index",
                        "content",
                        "parts",
                        "candidates",
                        "item",
                        "usage",
                        "error",
                        "response",
                        "tool_calls",
                        "function",
                        "content_block",
                    ]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ),
)
@settings(max_examples=40, deadline=None)
def test_no_answer_breaks_a_decoder(format: str, garbage: bytes, values: Any) -> None:
    decoder, parser = READERS[format].decoder(), EventParser()
    types = [
        "message_start",
        "content_block_start",
        "content_block_delta",
        "message_delta",
        "response.output_item.added",
        "response.output_item.done",
        "response.completed",
        "response.output_text.delta",
        "response.function_call_arguments.delta",
        "error",
    ]
    for type in types:
        body = {**values, "type": type} if isinstance(values, dict) else values
        for event in parser.feed(b"data: " + json.dumps(body).encode() + b"\n\n" + garbage + b"\n\n"):
            decoder.feed(event)


def test_chat_servers_that_differ() -> None:
    """Calls that share an index, arguments as an object, `stop` after calls, reasoning by its other name."""
    chunks = [
        {"id": "x", "choices": [{"index": 0, "delta": {"reasoning": "hm"}}]},
        {
            "choices": [
                {
                    "index": 0,
                    "delta": {
                        "tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}]
                    },
                }
            ]
        },
        {
            "choices": [
                {
                    "index": 0,
                    "delta": {"tool_calls": [{"index": 0, "id": "b", "function": {"name": "g", "arguments": "{}"}}]},
                }
            ]
        },
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2, "cost": 0.25}},
    ]
    sse = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    response, _ = read("chat", [sse])
    assert [(call.id, call.name, call.input) for call in response.tool_calls] == [("a", "f", {"x": 1}), ("b", "g", {})]
    assert response.stop_reason == "tool_use"
    assert response.usage.cost == 0.25


def test_interleaved_parallel_calls() -> None:
    def call(index: int, **fields: Any) -> dict[str, Any]:
        return {"choices": [{"index": 0, "delta": {"tool_calls": [{"index": index, **fields}]}}]}

    chunks = [
        call(0, id="a", function={"name": "f", "arguments": '{"x"'}),
        call(1, id="b", function={"name": "g", "arguments": '{"y"'}),
        call(0, function={"arguments": ":1}"}),
        call(1, function={"arguments": ":2}"}),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    ]
    sse = b"".join(b"data: " + json.dumps(chunk).encode() + b"\n\n" for chunk in chunks) + b"data: [DONE]\n\n"
    response, events = read("chat", [sse])
    assert [call.input for call in response.tool_calls] == [{"x": 1}, {"y": 2}]
    for format in CLIENTS:  # and a client of another format still hears which delta belongs to which call
        encoder = WRITERS[format].encoder(LLMRequest(messages=[]), {"model": "m"}, "chat")
        again, _ = read(format, [b"".join(encoder.feed(event) for event in events) + encoder.finish()])
        assert [(call.id, call.input) for call in again.tool_calls] == [("a", {"x": 1}), ("b", {"y": 2})]


@pytest.mark.parametrize("format", FORMATS)
def test_an_error_in_the_stream(format: str) -> None:
    errors = {
        "messages": {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}},
        "responses": {
            "type": "response.failed",
            "response": {"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "slow"}},
        },
        "chat": {"error": {"code": 429, "message": "slow"}},
        "gemini": {"error": {"status": "RESOURCE_EXHAUSTED", "code": 429, "message": "slow"}},
    }
    decoder = READERS[format].decoder()  # type: ignore[index]
    (event,) = EventParser().feed(b"data: " + json.dumps(errors[format]).encode() + b"\n\n")
    assert decoder.feed(event) == [Failed("rate_limit", "slow")]
    assert decoder.done


# -- answers written ----------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
words = st.text("abcdefghij_", min_size=1, max_size=8)
inputs = st.dictionaries(
    words, st.none() | st.booleans() | st.integers() | texts | st.lists(texts, max_size=2), max_size=3
)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[StreamEvent], Usage]:
    events: list[StreamEvent] = [Started("id-1", "m-1")]
    for index in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["text", "thinking", "tool"]))
        if kind == "tool":
            events.append(BlockStarted(index, "tool", f"call_{index}", draw(words)))
            said = json.dumps(draw(inputs))
        else:
            events.append(BlockStarted(index, kind))  # type: ignore[arg-type]
            said = draw(texts)
        cut = draw(st.integers(0, len(said)))
        events += [Delta(index, part, kind) for part in (said[:cut], said[cut:]) if part]  # type: ignore[arg-type]
        events.append(BlockEnded(index, "sig" if kind == "thinking" else ""))
    usage = Usage(
        input_tokens=draw(st.integers(0, 999)),
        cache_read_tokens=draw(st.integers(0, 99)),
        output_tokens=draw(st.integers(1, 99)),
    )
    return [*events, Stopped(draw(st.sampled_from(["end_turn", "max_tokens"]))), Counted(usage)], usage


@pytest.mark.parametrize("format", CLIENTS)
@given(given_answer=answers())
@settings(max_examples=40, deadline=None)
def test_an_answer_there_and_back(format: Any, given_answer: tuple[list[StreamEvent], Usage]) -> None:
    events, usage = given_answer
    collector = Collector("gemini")
    for event in events:
        collector.feed(event)
    told = collector.response()
    client = {"model": "m-1", "stream_options": {"include_usage": True}}
    encoder = WRITERS[format].encoder(LLMRequest(messages=[]), client, "gemini")
    back, _ = read(format, [b"".join(encoder.feed(event) for event in events) + encoder.finish()])
    assert back.content == told.content
    assert [(call.id, call.name, call.input) for call in back.tool_calls] == [
        (call.id, call.name, call.input) for call in told.tool_calls
    ]
    thoughts = [block.text for block in back.blocks if isinstance(block, ThinkingBlock)]
    assert "".join(thoughts) == "".join(block.text for block in told.blocks if isinstance(block, ThinkingBlock))
    expected = told.stop_reason
    if expected == "end_turn" and told.tool_calls and format != "messages":
        expected = "tool_use"  # Responses has no reason of its own, Chat's servers say `stop` for both
    assert back.stop_reason == expected
    assert back.usage == usage
    whole = WRITERS[format].encode_answer(told, LLMRequest(messages=[]))
    assert READERS[format].usage(whole) == usage
    json.dumps(whole)


# -- requests -----------------------------------------------------------------------------------------------------------

CONVERSATION = LLMRequest(
    system_prompt="Be brief.",
    messages=[
        Message(role="user", content=[TextBlock(text="what is this?"), ImageBlock(media_type="image/png", data=PNG)]),
        Message(
            role="assistant",
            content=[
                TextBlock(text="I look."),
                ToolUseBlock(id="call_1", name="look", input={"at": 1}),
                ToolUseBlock(id="call_2", name="look", input={"at": 2}),
            ],
        ),
        Message(
            role="user",
            content=[ToolResultBlock(id="call_1", content="a cat"), ToolResultBlock(id="call_2", content="a dog")],
        ),
        Message(role="user", content="and now?"),
    ],
    tools=[
        Tool(
            name="look", description="looks", input_schema={"type": "object", "properties": {"at": {"type": "integer"}}}
        )
    ],
    temperature=0.5,
    max_tokens=500,
    tool_choice="any",
    parallel_tools=False,
    stop=["END"],
    output=OutputSchema(name="answer", json_schema={"type": "object"}, strict=True),
)


@pytest.mark.parametrize("format", CLIENTS)
def test_a_request_there_and_back(format: Any) -> None:
    written = READERS[format].encode_request(CONVERSATION, target(format))
    back = WRITERS[format].decode_request(json.loads(json.dumps(written)))
    system = back.system_prompt or "".join(
        str(message.content) for message in back.messages if message.role == "system"
    )
    assert system == "Be brief."
    blocks = [block for message in back.messages if message.role != "system" for block in message.blocks()]
    sent = [block for message in CONVERSATION.messages for block in message.blocks()]
    assert blocks == sent
    tool = back.tools[0]
    assert (tool.name, tool.description, tool.input_schema["properties"]) == (
        "look",
        "looks",
        {"at": {"type": "integer"}},
    )
    assert (back.max_tokens, back.tool_choice, back.parallel_tools) == (500, "any", False)
    assert back.temperature == 0.5
    assert back.output is not None
    assert back.output.json_schema == {"type": "object"}
    if format != "responses":  # which has no stop sequences
        assert back.stop == ["END"]


def test_gemini_request() -> None:
    body = READERS["gemini"].encode_request(CONVERSATION, target("gemini"))
    assert [content["role"] for content in body["contents"]] == ["user", "model", "user"]
    look, results = body["contents"][1]["parts"], body["contents"][2]["parts"]
    assert look[1] == {
        "functionCall": {"name": "look", "args": {"at": 1}},
        "thoughtSignature": "skip_thought_signature_validator",
    }
    assert results[0] == {"functionResponse": {"name": "look", "response": {"output": "a cat"}}}
    assert results[2] == {"text": "and now?"}
    assert body["toolConfig"] == {"functionCallingConfig": {"mode": "ANY"}}
    assert body["generationConfig"]["responseJsonSchema"] == {"type": "object"}
    assert body["generationConfig"]["stopSequences"] == ["END"]


def test_thinking_goes_back_only_where_it_came_from() -> None:
    """A model's reasoning, shown to a client of another format, returns to that model whole and to no other."""
    for client in ("messages", "responses"):
        for source in FORMATS:
            if source == client:
                continue  # alike is passed on, never translated
            encoder = WRITERS[client].encoder(LLMRequest(messages=[]), {"model": "m"}, source)  # type: ignore[index]
            signature = "rs_1|enc" if source == "responses" else "proof"
            events = [
                Started(),
                BlockStarted(0, "thinking"),
                Delta(0, "hm", "thinking"),
                BlockEnded(0, signature),
                Stopped("end_turn"),
            ]
            shown, _ = read(client, [b"".join(encoder.feed(event) for event in events) + encoder.finish()])  # type: ignore[list-item]
            if client == "messages":
                item: dict[str, Any] = {
                    "messages": [
                        {
                            "role": "assistant",
                            "content": [{"type": "thinking", "thinking": "hm", "signature": shown.blocks[0].signature}],
                        }
                    ]
                }  # type: ignore[union-attr]
            else:
                id, _, encrypted = shown.blocks[0].signature.partition("|")  # type: ignore[union-attr]
                item = {
                    "input": [
                        {
                            "type": "reasoning",
                            "id": id,
                            "summary": [{"type": "summary_text", "text": "hm"}],
                            "encrypted_content": encrypted,
                        }
                    ]
                }
            (block,) = WRITERS[client].decode_request(item).messages[0].blocks()  # type: ignore[index]
            assert (block.text, block.source) == ("hm", source)
            for model in FORMATS:
                request = LLMRequest(
                    messages=[Message(role="user", content="hi"), Message(role="assistant", content=[block])]
                )
                sent = json.dumps(READERS[model].encode_request(request, target(model)))  # type: ignore[index]
                assert ("proof" in sent or '"enc"' in sent) == (model == source and model != "chat"), (
                    client,
                    source,
                    model,
                )


@pytest.mark.parametrize("client", ["messages", "responses"])
def test_an_open_models_reasoning_goes_back_to_it(client: Any) -> None:
    """Through a client of another format: these models go on from their own reasoning between tool calls."""
    _, events = read("chat", [stream("chat", Say(tools=[("f", {})], thinking="I need f."))])
    encoder = WRITERS[client].encoder(LLMRequest(messages=[]), {"model": "m"}, "chat")
    sse = EventParser().feed(b"".join(encoder.feed(event) for event in events) + encoder.finish())
    if client == "messages":
        (signature,) = (event.json()["delta"]["signature"] for event in sse if '"signature_delta"' in event.data)
        content = [
            {"type": "thinking", "thinking": "I need f.", "signature": signature},
            {"type": "tool_use", "id": "a", "name": "f", "input": {}},
        ]
        history: dict[str, Any] = {
            "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": content}]
        }
    else:
        history = {"input": [event.json()["item"] for event in sse if event.name == "response.output_item.done"]}
    request = WRITERS[client].decode_request(history)
    for provider, kept in (("vllm", "I need f."), ("openai", None)):
        model = resolve(provider, {"model": "m", "apiKey": "sk-test-key", "format": "chat"})
        message = READERS["chat"].encode_request(request, model)["messages"][-1]
        assert message.get("reasoning_content") == kept
        assert message["tool_calls"][0]["function"]["name"] == "f"


def test_a_later_system_message_stays_in_its_place() -> None:
    request = WRITERS["messages"].decode_request(
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "system", "content": "b"},
                {"role": "user", "content": "c"},
            ]
        }
    )
    body = READERS["chat"].encode_request(request, target("chat"))
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert body["messages"][0]["content"] == "a\n\n<system-reminder>\nb\n</system-reminder>\n\nc"


def test_images_of_tools_follow_as_the_users() -> None:
    result = ToolResultBlock(
        id="call_1", content=[TextBlock(text="shot"), ImageBlock(media_type="image/png", data=PNG)], is_error=True
    )
    request = LLMRequest(
        messages=[
            Message(role="assistant", content=[ToolUseBlock(id="call_1", name="x")]),
            Message(role="user", content=[result]),
        ]
    )
    body = READERS["chat"].encode_request(request, target("chat"))
    assert [message["role"] for message in body["messages"]] == ["assistant", "tool", "user"]
    assert body["messages"][1]["content"] == "Error: shot"
    assert body["messages"][2]["content"][1]["image_url"]["url"] == f"data:image/png;base64,{PNG}"


CODEX_TOOLS = [
    {
        "type": "custom",
        "name": "apply_patch",
        "description": "Patches.",
        "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"},
    },
    {
        "type": "namespace",
        "name": "agents",
        "description": "",
        "tools": [{"type": "function", "name": "spawn", "parameters": {"type": "object"}}],
    },
]


def test_freeform_and_namespaced_tools() -> None:
    """Codex's tools on a model that knows only functions: flattened on the way there, themselves on the way back."""
    request = WRITERS["responses"].decode_request({"model": "m", "input": "hi", "tools": CODEX_TOOLS})
    body = READERS["chat"].encode_request(request, target("chat"))
    assert [tool["function"]["name"] for tool in body["tools"]] == ["apply_patch", "agents__spawn"]
    assert "lark grammar" in body["tools"][0]["function"]["description"]
    answer = stream("chat", Say(tools=[("apply_patch", {"input": "*** Begin Patch\n"}), ("agents__spawn", {"n": 1})]))
    _, events = read("chat", [answer])
    encoder = WRITERS["responses"].encoder(request, {"model": "m"}, "chat")
    parser = EventParser()
    written = b"".join(encoder.feed(event) for event in events) + encoder.finish()
    items = [event.json()["item"] for event in parser.feed(written) if event.name == "response.output_item.done"]
    assert (items[0]["type"], items[0]["input"]) == ("custom_tool_call", "*** Begin Patch\n")
    assert (items[1]["name"], items[1]["namespace"], items[1]["arguments"]) == ("spawn", "agents", '{"n": 1}')
    history = WRITERS["responses"].decode_request(
        {
            "model": "m",
            "input": [*items, {"type": "custom_tool_call_output", "call_id": items[0]["call_id"], "output": "ok"}],
        }
    )
    calls = READERS["chat"].encode_request(history, target("chat"))["messages"][0]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["apply_patch", "agents__spawn"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"input": "*** Begin Patch\n"}


@pytest.mark.parametrize(
    ("format", "body", "feature"),
    [
        (
            "messages",
            {"messages": [], "tools": [{"type": "web_search_20250305", "name": "web_search"}]},
            "web_search_20250305",
        ),
        ("messages", {"messages": [], "mcp_servers": [{"url": "https://x"}]}, "mcp_servers"),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {"type": "base64"}}]}]},
            "documents (base64)",
        ),
        ("responses", {"input": "x", "tools": [{"type": "code_interpreter"}]}, "code_interpreter"),
        ("responses", {"input": "x", "previous_response_id": "resp_1"}, "previous_response_id"),
        ("responses", {"input": [{"type": "image_generation_call"}]}, "items of type image_generation_call"),
        ("chat", {"messages": [], "n": 2}, "n > 1"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "content of type input_audio"),
    ],
)
def test_what_cannot_be_translated_is_named(format: Any, body: dict[str, Any], feature: str) -> None:
    with pytest.raises(RunraError) as caught:
        WRITERS[format].decode_request(body)
    assert caught.value.details["kind"] == "unsupported"
    assert caught.value.details["features"] == [feature]


def test_thinking_settings() -> None:
    hard = LLMRequest(messages=[Message(role="user", content="x")], effort="high", max_tokens=40_000, temperature=0.3)

    def written(provider: str, model: str, **config: Any) -> dict[str, Any]:
        one = resolve(provider, {"model": model, "apiKey": "sk-test-key", **config})
        return READERS[one.format].encode_request(hard, one)

    assert written("anthropic", "claude-sonnet-4-5")["thinking"] == {"type": "enabled", "budget_tokens": 16_384}
    newer = written("anthropic", "claude-opus-4-8")
    assert (newer["thinking"], newer["output_config"]) == ({"type": "adaptive"}, {"effort": "high"})
    assert "temperature" not in newer
    assert "thinking" not in written("anthropic", "claude-3-5-haiku-latest")
    assert written("openai", "gpt-5.2")["reasoning"]["effort"] == "high"
    assert "reasoning" not in written("openai", "gpt-4.1")
    assert "reasoning_effort" not in written("vllm", "qwen3")
    assert written("vllm", "qwen3", reasoning="effort")["reasoning_effort"] == "high"
    assert written("gemini", "gemini-2.5-pro")["generationConfig"]["thinkingConfig"]["thinkingBudget"] == 16_384
    assert written("gemini", "gemini-3-pro")["generationConfig"]["thinkingConfig"]["thinkingLevel"] == "high"
    assert written("openrouter", "anthropic/claude-sonnet-4.5")["reasoning"] == {"effort": "high"}
