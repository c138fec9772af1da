"""A scripted model server: Anthropic Messages, OpenAI Responses, OpenAI Chat and Gemini, with faults on demand.

It shares no code with the product, so that the two check each other. Give it a script and ask what it saw:

    async with ScriptedModel([Say("hello"), Say(tools=[("bash", {"command": "ls"})]), Fault("429", retry_after=1)]) as model:
        …  # point a client at model.url, with the key model.key
        assert model.seen[0].body["model"] == "m"

A script is a list (one entry a request; the last one repeats) or a function from what was seen to an entry, such as
`agent_loop`, which drives a coding agent through one shell command.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from aiohttp import web

Format = Literal["messages", "responses", "chat", "gemini"]


@dataclass(frozen=True)
class Tokens:
    """Counted as a provider bills them: `uncached` input, what came from and went to the cache, output with its reasoning."""

    uncached: int = 700
    cache_read: int = 300
    cache_write: int = 0
    output: int = 42
    reasoning: int = 7


@dataclass(frozen=True)
class Say:
    """One answer of the model."""

    text: str = ""
    tools: Sequence[tuple[str, Any]] = ()
    thinking: str = ""
    tokens: Tokens = Tokens()
    stop: str | None = None  # "length" or "refusal"; otherwise what the content implies
    pieces: int = 3  # into how many deltas each text is cut
    pause: float = 0.0  # seconds between the pieces
    then: Literal["end", "hang", "cut", "error"] = "end"  # after the last event / in the middle
    cost: float | None = None  # OpenRouter's `usage.cost`
    cut_after: int = 4  # events before `cut` and `error`
    repeat: int = 1  # text pieces times this: a long stream


@dataclass(frozen=True)
class Fault:
    """A failure. `kind`: 401, 403, 400, context, refused, 429, 500, 529, reset, slow, endless, garbage, silent."""

    kind: str
    retry_after: float | None = None
    seconds: float = 30.0


Step = Say | Fault


class _Aborted(Exception):
    """We have reset the connection ourselves."""


@dataclass
class Seen:
    """One request as it came."""

    format: Format
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes
    step: Step | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)  # set when the client hung up on us

    @property
    def tools(self) -> list[str]:
        """Names of the offered tools."""
        tools = self.body.get("tools") or []
        if self.format == "gemini":
            tools = [one for tool in tools for one in tool.get("functionDeclarations", [])]
        return [str((tool.get("function") or tool).get("name") or tool.get("type")) for tool in tools]

    @property
    def answered_tools(self) -> bool:
        """Whether the conversation ends with a tool's result."""
        if self.format == "responses":
            items = self.body.get("input")
            outputs = ("function_call_output", "custom_tool_call_output", "local_shell_call_output")
            return isinstance(items, list) and any(item.get("type") in outputs for item in items[-4:])
        if self.format == "gemini":
            parts = self.body["contents"][-1]["parts"]
            return any("functionResponse" in part for part in parts)
        last = self.body["messages"][-1]
        if self.format == "chat":
            return bool(last["role"] == "tool")
        content = last["content"]
        return isinstance(content, list) and any(block.get("type") == "tool_result" for block in content)

    @property
    def stream(self) -> bool:
        return "streamGenerateContent" in self.path if self.format == "gemini" else bool(self.body.get("stream"))


def shell_call(seen: Seen, command: str) -> tuple[str, Any]:
    """The call of whichever shell tool this agent offers."""
    for name, arguments in (
        ("Bash", {"command": command, "description": "run it"}),
        ("bash", {"command": command, "description": "run it"}),
        ("exec_command", {"cmd": command}),
        ("shell_command", {"command": command}),
        ("shell", {"command": ["bash", "-lc", command]}),
    ):
        if name in seen.tools:
            return name, arguments
    raise AssertionError(f"no shell tool among {seen.tools}")


def agent_loop(command: str = "echo hello-from-agent > hello.txt && cat hello.txt") -> Callable[[Seen], Step]:
    """A script for coding agents: a side call without tools gets a title, the first turn one shell command, then the end."""

    def step(seen: Seen) -> Step:
        if not seen.tools:
            return Say("A title")
        if seen.answered_tools:
            return Say("Done: wrote hello.txt")
        return Say("I'll write the file.", [shell_call(seen, command)], thinking="I should use a shell command.")

    return step


class ScriptedModel:
    """The server. An async context manager; `url` has no path, `key` is what it accepts in any of the three headers."""

    def __init__(
        self, script: Sequence[Step] | Callable[[Seen], Step] = (Say("ok"),), *, key: str | None = None
    ) -> None:
        self.script = script
        self.key = key or "sk-real-" + secrets.token_hex(16)
        self.seen: list[Seen] = []
        self.url = ""
        self._ids = 0
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> ScriptedModel:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def next_id(self, prefix: str) -> str:
        self._ids += 1
        return f"{prefix}{self._ids:04d}"

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "scripted-1", "object": "model"}]})

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        format = _format(request.path)
        if format is None:
            return web.json_response({"error": {"message": f"no such route {request.path}"}}, status=404)
        raw = await request.read()
        seen = Seen(format, request.path, {k.lower(): v for k, v in request.headers.items()}, json.loads(raw), raw)
        if request.path.endswith("/count_tokens"):
            return web.json_response({"input_tokens": 1234})
        self.seen.append(seen)
        given = {
            seen.headers.get("x-api-key"),
            seen.headers.get("x-goog-api-key"),
            seen.headers.get("authorization", "").removeprefix("Bearer "),
        }
        if self.key not in given:
            return _error(format, 401)
        script = self.script
        step = script(seen) if callable(script) else script[min(len(self.seen), len(script)) - 1]
        seen.step = step
        try:
            if isinstance(step, Fault):
                return await self._fail(request, seen, step)
            return await self._say(request, seen, step)
        except _Aborted:
            return web.Response()  # to nobody
        except (asyncio.CancelledError, ConnectionResetError):
            seen.gone.set()
            raise

    async def _fail(self, request: web.Request, seen: Seen, fault: Fault) -> web.StreamResponse:
        kind = fault.kind
        if kind in ("context", "refused") or kind.isdigit():
            return _error(seen.format, int(kind) if kind.isdigit() else 400, kind, fault.retry_after)
        if kind == "slow":
            await asyncio.sleep(fault.seconds)
            return await self._say(request, seen, Say("at last"))
        if kind == "silent":
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            await asyncio.sleep(fault.seconds)
            return response
        if kind == "garbage":
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream" if seen.stream else "application/json"}
            )
            await response.prepare(request)
            await response.write(b"\x00\xffdata: {not json\n\ndata: []\n\ndata: 7\n\n<html>502</html>\n\n")
            return response
        if kind == "endless":
            return await self._say(request, seen, Say("more and more and more and more ", repeat=1 << 30, pause=0.001))
        assert kind == "reset", kind
        assert request.transport is not None
        request.transport.abort()
        raise _Aborted

    async def _say(self, request: web.Request, seen: Seen, say: Say) -> web.StreamResponse:
        events = _STREAMS[seen.format](self, seen, say)
        if not seen.stream:
            body = _WHOLES[seen.format](self, seen, say)
            return web.json_response(body, headers={"request-id": "req_scripted"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "request-id": "req_scripted"})
        await response.prepare(request)
        for sent, event in enumerate(events, 1):
            await response.write(event)
            if say.pause:
                await asyncio.sleep(say.pause)
            if say.then == "cut" and sent == say.cut_after:
                assert request.transport is not None
                request.transport.abort()
                raise _Aborted
            if say.then == "error" and sent == say.cut_after:
                await response.write(_stream_error(seen.format))
                return response
        if say.then == "hang":
            await asyncio.sleep(60)
        return response


def _format(path: str) -> Format | None:
    if path.endswith(("/messages", "/messages/count_tokens")):
        return "messages"
    if path.endswith("/responses"):
        return "responses"
    if path.endswith("/chat/completions"):
        return "chat"
    return "gemini" if ":generateContent" in path or ":streamGenerateContent" in path else None


def _cut(text: str, say: Say) -> Iterator[str]:
    size = max(1, -(-len(text) // say.pieces))
    for _ in range(say.repeat if text else 0):
        for start in range(0, len(text), size):
            yield text[start : start + size]


# -- faults, each in its format's own words -------------------------------------------------------------------------

_WORDS = {
    "401": ("authentication_error", "invalid_api_key", "UNAUTHENTICATED", "invalid x-api-key"),
    "403": ("permission_error", "forbidden", "PERMISSION_DENIED", "not allowed"),
    "400": ("invalid_request_error", "invalid_value", "INVALID_ARGUMENT", "messages.0: nonsense"),
    "context": (
        "invalid_request_error",
        "context_length_exceeded",
        "INVALID_ARGUMENT",
        "prompt is too long: 250000 tokens > 200000 maximum",
    ),
    "refused": ("invalid_request_error", "content_policy_violation", "INVALID_ARGUMENT", "blocked by content policy"),
    "429": ("rate_limit_error", "rate_limit_exceeded", "RESOURCE_EXHAUSTED", "slow down"),
    "500": ("api_error", "server_error", "INTERNAL", "it broke"),
    "529": ("overloaded_error", "server_error", "UNAVAILABLE", "Overloaded"),
}


def _error(format: Format, status: int, kind: str = "", retry_after: float | None = None) -> web.Response:
    anthropic, openai, google, message = _WORDS[kind or str(status)]
    headers = {} if retry_after is None else {"retry-after": f"{retry_after:g}"}
    body: dict[str, Any]
    if format == "messages":
        body = {"type": "error", "error": {"type": anthropic, "message": message}, "request_id": "req_scripted"}
    elif format == "gemini":
        if kind == "context":
            message = "The input token count (1100000) exceeds the maximum number of tokens allowed (1048576)."
        body = {"error": {"code": status, "message": message, "status": google}}
    else:
        if kind == "context":
            message = "This model's maximum context length is 128000 tokens. However, your messages resulted in 250000 tokens."
        body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": openai}}
    return web.json_response(body, status=status, headers=headers)


def _stream_error(format: Format) -> bytes:
    if format == "messages":
        return _named({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}})
    if format == "responses":
        error = {"code": "server_error", "message": "it broke"}
        return _named(
            {
                "type": "response.failed",
                "sequence_number": 99,
                "response": {"id": "resp_x", "object": "response", "status": "failed", "error": error, "output": []},
            }
        )
    if format == "chat":
        return _data({"error": {"message": "it broke", "code": 502}})
    return _data({"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}})


def _data(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _named(value: dict[str, Any]) -> bytes:
    return f"event: {value['type']}\n".encode() + _data(value)


# -- Anthropic Messages -----------------------------------------------------------------------------------------------


def _messages_usage(tokens: Tokens, output: int) -> dict[str, Any]:
    return {
        "input_tokens": tokens.uncached,
        "cache_creation_input_tokens": tokens.cache_write,
        "cache_read_input_tokens": tokens.cache_read,
        "output_tokens": output,
    }


def _messages_stop(say: Say) -> str:
    named = {"length": "max_tokens", "refusal": "refusal"}
    return named[say.stop] if say.stop else "tool_use" if say.tools else "end_turn"


def _messages_blocks(server: ScriptedModel, say: Say) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if say.thinking:
        blocks.append({"type": "thinking", "thinking": say.thinking, "signature": "c2lnbmF0dXJl"})
    if say.text:
        blocks.append({"type": "text", "text": say.text})
    for name, arguments in say.tools:
        blocks.append({"type": "tool_use", "id": server.next_id("toolu_"), "name": name, "input": arguments})
    return blocks


def _messages_whole(server: ScriptedModel, seen: Seen, say: Say) -> dict[str, Any]:
    return {
        "id": server.next_id("msg_"),
        "type": "message",
        "role": "assistant",
        "model": seen.body["model"],
        "content": _messages_blocks(server, say),
        "stop_reason": _messages_stop(say),
        "stop_sequence": None,
        "usage": _messages_usage(say.tokens, say.tokens.output),
    }


def _messages_stream(server: ScriptedModel, seen: Seen, say: Say) -> Iterator[bytes]:
    whole = _messages_whole(server, seen, say)
    blocks = whole["content"]
    start = {**whole, "content": [], "stop_reason": None, "usage": _messages_usage(say.tokens, 1)}
    yield _named({"type": "message_start", "message": start})
    yield _named({"type": "ping"})
    for index, block in enumerate(blocks):
        kind = block["type"]
        if kind == "thinking":
            empty = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in _cut(block["thinking"], say)]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        elif kind == "text":
            empty = {"type": "text", "text": ""}
            deltas = ({"type": "text_delta", "text": piece} for piece in _cut(block["text"], say))  # type: ignore[assignment]
        else:
            empty = {**block, "input": {}}
            deltas = [
                {"type": "input_json_delta", "partial_json": piece} for piece in _cut(json.dumps(block["input"]), say)
            ]
        yield _named({"type": "content_block_start", "index": index, "content_block": empty})
        for delta in deltas:
            yield _named({"type": "content_block_delta", "index": index, "delta": delta})
        yield _named({"type": "content_block_stop", "index": index})
    usage = {"output_tokens": say.tokens.output}
    yield _named(
        {"type": "message_delta", "delta": {"stop_reason": _messages_stop(say), "stop_sequence": None}, "usage": usage}
    )
    yield _named({"type": "message_stop"})


# -- OpenAI Chat ------------------------------------------------------------------------------------------------------


def _chat_usage(say: Say) -> dict[str, Any]:
    tokens = say.tokens
    prompt = tokens.uncached + tokens.cache_read
    usage: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": tokens.output,
        "total_tokens": prompt + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cache_read},
        "completion_tokens_details": {"reasoning_tokens": tokens.reasoning},
    }
    if say.cost is not None:
        usage["cost"] = say.cost
    return usage


def _chat_stop(say: Say) -> str:
    named = {"length": "length", "refusal": "content_filter"}
    return named[say.stop] if say.stop else "tool_calls" if say.tools else "stop"


def _chat_calls(server: ScriptedModel, say: Say) -> list[dict[str, Any]]:
    return [
        {
            "id": server.next_id("call_"),
            "type": "function",
            "function": {"name": name, "arguments": json.dumps(arguments)},
        }
        for name, arguments in say.tools
    ]


def _chat_whole(server: ScriptedModel, seen: Seen, say: Say) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": say.text or None, "refusal": None}
    if say.thinking:
        message["reasoning_content"] = say.thinking
    if say.tools:
        message["tool_calls"] = _chat_calls(server, say)
    return {
        "id": server.next_id("chatcmpl-"),
        "object": "chat.completion",
        "created": 1790000000,
        "model": seen.body["model"],
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": _chat_stop(say)}],
        "usage": _chat_usage(say),
    }


def _chat_stream(server: ScriptedModel, seen: Seen, say: Say) -> Iterator[bytes]:
    base = {
        "id": server.next_id("chatcmpl-"),
        "object": "chat.completion.chunk",
        "created": 1790000000,
        "model": seen.body["model"],
    }

    def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
        return _data({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    yield chunk({"role": "assistant", "content": ""})
    for piece in _cut(say.thinking, say):
        yield chunk({"reasoning_content": piece})
    for piece in _cut(say.text, say):
        yield chunk({"content": piece})
    for index, call in enumerate(_chat_calls(server, say)):
        arguments = call["function"]["arguments"]
        opening = {**call, "index": index, "function": {"name": call["function"]["name"], "arguments": ""}}
        yield chunk({"tool_calls": [opening]})
        for piece in _cut(arguments, say):
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})
    yield chunk({}, _chat_stop(say))
    if (seen.body.get("stream_options") or {}).get("include_usage"):
        yield _data({**base, "choices": [], "usage": _chat_usage(say)})
    yield b"data: [DONE]\n\n"


# -- OpenAI Responses -------------------------------------------------------------------------------------------------


def _responses_items(server: ScriptedModel, seen: Seen, say: Say) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    custom = {tool["name"] for tool in seen.body.get("tools") or [] if tool.get("type") == "custom"}
    if say.thinking:
        summary = [{"type": "summary_text", "text": say.thinking}]
        items.append(
            {"type": "reasoning", "id": server.next_id("rs_"), "summary": summary, "encrypted_content": "ZW5jcnlwdGVk"}
        )
    if say.text or not say.tools:
        content = [{"type": "output_text", "text": say.text, "annotations": []}]
        items.append(
            {
                "type": "message",
                "id": server.next_id("msg_"),
                "status": "completed",
                "role": "assistant",
                "content": content,
            }
        )
    for name, arguments in say.tools:
        call_id = server.next_id("call_")
        if name in custom:
            items.append(
                {
                    "type": "custom_tool_call",
                    "id": server.next_id("ctc_"),
                    "status": "completed",
                    "call_id": call_id,
                    "name": name,
                    "input": arguments,
                }
            )
        else:
            items.append(
                {
                    "type": "function_call",
                    "id": server.next_id("fc_"),
                    "status": "completed",
                    "call_id": call_id,
                    "name": name,
                    "arguments": json.dumps(arguments),
                }
            )
    return items


def _responses_whole(server: ScriptedModel, seen: Seen, say: Say) -> dict[str, Any]:
    tokens = say.tokens
    total = tokens.uncached + tokens.cache_read
    return {
        "id": server.next_id("resp_"),
        "object": "response",
        "created_at": 1790000000,
        "status": "incomplete" if say.stop else "completed",
        "error": None,
        "incomplete_details": {"reason": {"length": "max_output_tokens", "refusal": "content_filter"}[say.stop]}
        if say.stop
        else None,
        "model": seen.body["model"],
        "output": _responses_items(server, seen, say),
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": seen.body.get("tools") or [],
        "usage": {
            "input_tokens": total,
            "input_tokens_details": {"cached_tokens": tokens.cache_read},
            "output_tokens": tokens.output,
            "output_tokens_details": {"reasoning_tokens": tokens.reasoning},
            "total_tokens": total + tokens.output,
        },
    }


def _responses_stream(server: ScriptedModel, seen: Seen, say: Say) -> Iterator[bytes]:
    whole = _responses_whole(server, seen, say)
    number = iter(range(1 << 62))

    def event(type: str, **fields: Any) -> bytes:
        return _named({"type": type, "sequence_number": next(number), **fields})

    begun = {**whole, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
    yield event("response.created", response=begun)
    yield event("response.in_progress", response=begun)
    for index, item in enumerate(whole["output"]):
        where = {"item_id": item["id"], "output_index": index}
        kind = item["type"]
        if kind == "reasoning":
            text = item["summary"][0]["text"]
            yield event("response.output_item.added", output_index=index, item={**item, "summary": []})
            yield event(
                "response.reasoning_summary_part.added",
                **where,
                summary_index=0,
                part={"type": "summary_text", "text": ""},
            )
            for piece in _cut(text, say):
                yield event("response.reasoning_summary_text.delta", **where, summary_index=0, delta=piece)
            yield event("response.reasoning_summary_text.done", **where, summary_index=0, text=text)
            yield event("response.reasoning_summary_part.done", **where, summary_index=0, part=item["summary"][0])
        elif kind == "message":
            part = item["content"][0]
            yield event(
                "response.output_item.added", output_index=index, item={**item, "content": [], "status": "in_progress"}
            )
            yield event("response.content_part.added", **where, content_index=0, part={**part, "text": ""})
            for piece in _cut(part["text"], say):
                yield event("response.output_text.delta", **where, content_index=0, delta=piece)
            yield event("response.output_text.done", **where, content_index=0, text=part["text"])
            yield event("response.content_part.done", **where, content_index=0, part=part)
        elif kind == "custom_tool_call":
            yield event(
                "response.output_item.added", output_index=index, item={**item, "input": "", "status": "in_progress"}
            )
            for piece in _cut(item["input"], say):
                yield event("response.custom_tool_call_input.delta", **where, delta=piece)
            yield event("response.custom_tool_call_input.done", **where, input=item["input"])
        else:
            yield event(
                "response.output_item.added",
                output_index=index,
                item={**item, "arguments": "", "status": "in_progress"},
            )
            for piece in _cut(item["arguments"], say):
                yield event("response.function_call_arguments.delta", **where, delta=piece)
            yield event("response.function_call_arguments.done", **where, arguments=item["arguments"])
        yield event("response.output_item.done", output_index=index, item=item)
    yield event("response.incomplete" if say.stop else "response.completed", response=whole)


# -- Gemini -----------------------------------------------------------------------------------------------------------


def _gemini_body(parts: list[dict[str, Any]], seen: Seen, say: Say, finish: str | None) -> dict[str, Any]:
    tokens = say.tokens
    prompt = tokens.uncached + tokens.cache_read
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": parts}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    return {
        "candidates": [candidate],
        "usageMetadata": {
            "promptTokenCount": prompt,
            "cachedContentTokenCount": tokens.cache_read,
            "candidatesTokenCount": tokens.output - tokens.reasoning,
            "thoughtsTokenCount": tokens.reasoning,
            "totalTokenCount": prompt + tokens.output,
        },
        "modelVersion": seen.path.rpartition("/")[2].partition(":")[0],
        "responseId": "gem-1",
    }


def _gemini_finish(say: Say) -> str:
    return {"length": "MAX_TOKENS", "refusal": "SAFETY"}[say.stop] if say.stop else "STOP"


def _gemini_calls(say: Say) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"functionCall": {"name": name, "args": arguments}} for name, arguments in say.tools]
    if parts:
        parts[0]["thoughtSignature"] = "dGhvdWdodA=="
    return parts


def _gemini_whole(server: ScriptedModel, seen: Seen, say: Say) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    if say.thinking:
        parts.append({"text": say.thinking, "thought": True})
    if say.text:
        parts.append({"text": say.text})
    return _gemini_body(parts + _gemini_calls(say), seen, say, _gemini_finish(say))


def _gemini_stream(server: ScriptedModel, seen: Seen, say: Say) -> Iterator[bytes]:
    def chunk(parts: list[dict[str, Any]], finish: str | None = None) -> bytes:
        return b"data: " + json.dumps(_gemini_body(parts, seen, say, finish)).encode() + b"\r\n\r\n"

    for piece in _cut(say.thinking, say):
        yield chunk([{"text": piece, "thought": True}])
    for piece in _cut(say.text, say):
        yield chunk([{"text": piece}])
    if say.tools:
        yield chunk(_gemini_calls(say))
    yield chunk([{"text": ""}], _gemini_finish(say))


_STREAMS: dict[Format, Callable[[ScriptedModel, Seen, Say], Iterator[bytes]]] = {
    "messages": _messages_stream,
    "responses": _responses_stream,
    "chat": _chat_stream,
    "gemini": _gemini_stream,
}
_WHOLES: dict[Format, Callable[[ScriptedModel, Seen, Say], dict[str, Any]]] = {
    "messages": _messages_whole,
    "responses": _responses_whole,
    "chat": _chat_whole,
    "gemini": _gemini_whole,
}
