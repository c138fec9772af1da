"""One call through the gateway: passed on byte for byte where client and model speak alike, else translated."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol

from pydantic import ValidationError

from runra.errors import RunraError
from runra.runtime.gateway.bodies import Body
from runra.runtime.gateway.policy import permitted
from runra.runtime.gateway.runs import Call, Run
from runra.runtime.gateway.streams import Redactor, UsageFilter
from runra.runtime.llms.collect import Collector
from runra.runtime.llms.failures import failure, kind_of
from runra.runtime.llms.provider import has_images
from runra.runtime.llms.types import (
    BlockEnded,
    BlockStarted,
    Counted,
    Delta,
    Failed,
    Format,
    LLMRequest,
    Message,
    Stopped,
    StreamEvent,
    ToolUseBlock,
)
from runra.runtime.llms.upstream import Answer, Upstream, events, parse, request_url
from runra.runtime.llms.wires import READERS, WRITERS, Decoder
from runra.runtime.llms.wires.parts import unsupported
from runra.sdk.sse import EventParser

#: Longest whole (unstreamed) answer that is taken.
_MAX_WHOLE: Final = 64 << 20
#: Seconds a client may take to accept a piece before it counts as gone.
WRITE_S: Final = 120.0
#: Characters of an answer between two looks at the budget: about 500 tokens.
_LOOK_EVERY: Final = 2000
#: Headers of a client that reach the provider. No others: some choose who pays.
_FORWARDED: Final = ("accept", "user-agent", "anthropic-version", "anthropic-beta", "openai-beta")
#: Models without a known maximum are asked for no more than this, however much an agent's own model could write.
_LOCAL_MAX_TOKENS: Final = 8192

_STREAM_HEADERS: Final = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}


class Sink(Protocol):
    """Where an answer goes. `write` waits while the client does not read, and raises when it is gone."""

    async def start(self, status: int, headers: Mapping[str, str]) -> None: ...

    async def write(self, piece: bytes) -> None: ...


class Relay:
    """One call: `run` it once. It books the call on every path."""

    def __init__(self, upstream: Upstream, run: Run, call: Call, body: Body, sink: Sink) -> None:
        self._upstream = upstream
        self._run = run
        self._call = call
        self._body = body
        self._sink = sink
        self._target = call.target
        self._redactor = Redactor(call.target.key)
        self._looked = 0
        self.started = False

    async def run(self, format: Format, headers: Mapping[str, str], query: str) -> None:
        """Raises a RunraError while nothing was answered yet; later failures go into the answer."""
        call = self._call
        self._run.enter(call)
        try:
            if format in self._target.paths:
                await self._pass(format, headers, query)
            else:
                await self._translate(format)
            call.status = "failed" if call.error else "ok"  # an error the provider told in its stream was passed on
        except RunraError as error:
            call.error = kind_of(error) or error.code
            call.status = "stopped" if call.error in ("budget", "turns") else "failed"
            raise
        finally:
            self._run.leave(call)

    # -- alike --------------------------------------------------------------------------------------------------------

    async def _pass(self, format: Format, headers: Mapping[str, str], query: str) -> None:
        body = self._body.value
        changes: dict[str, Any] = {**permitted(self._run.limits, format, body), "model": self._target.model}
        streamed = body.get("stream") is True
        unasked = False
        if format == "chat" and streamed:
            options = body.get("stream_options")
            options = options if isinstance(options, dict) else {}
            if options.get("include_usage") is not True:
                changes["stream_options"] = {**options, "include_usage": True}
                unasked = True
        url = request_url(self._target, format) + ("?beta=true" if query == "beta=true" else "")
        forwarded = {name: headers[name] for name in _FORWARDED if name in headers}
        answer = await self._open(url, self._body.replaced(changes), forwarded)
        try:
            kind = answer.headers.get("content-type", "application/json")
            if kind.startswith("text/event-stream"):
                await self._pass_stream(format, answer, UsageFilter() if unasked else None)
            else:
                await self._pass_whole(format, answer, kind)
        finally:
            answer.close()

    async def _pass_stream(self, format: Format, answer: Answer, filter: UsageFilter | None) -> None:
        parser, decoder = EventParser(), READERS[format].decoder()
        try:
            async for piece in answer.chunks():
                if not self.started:
                    await self._start(200, _passed_headers(answer))
                # Sent first, then looked at: nobody waits for that.
                await self._write(filter.feed(piece) if filter else piece)
                seen = [one for event in parse(parser, piece) for one in decoder.feed(event)]
                self._watch(seen)
                answer.complete = answer.complete or any(isinstance(one, Stopped) for one in seen)
                if decoder.done:  # what a server does after its last event is its own affair
                    break
                if piece.endswith(b"\n\n"):
                    self._look()
            if filter is not None:
                await self._write(filter.finish())
            if not answer.complete and not decoder.done:
                raise failure("unavailable", "the model's answer broke off in the middle")
            await self._finish()
        except RunraError as error:
            await self._tell(format, error)
            raise

    async def _pass_whole(self, format: Format, answer: Answer, kind: str) -> None:
        whole = bytearray()
        async for piece in answer.chunks():
            whole += piece
            if len(whole) > _MAX_WHOLE:
                raise failure("protocol", f"the model's answer is longer than {_MAX_WHOLE >> 20} MiB")
        try:
            parsed = json.loads(whole)
        except (ValueError, RecursionError):
            raise failure("protocol", "the model's server answered with something that is no JSON") from None
        self._call.usage, self._call.stopped = READERS[format].usage(parsed), True
        await self._start(answer.status, {**_passed_headers(answer), "content-type": kind})
        await self._write(bytes(whole))
        await self._finish()

    # -- unlike -------------------------------------------------------------------------------------------------------

    async def _translate(self, format: Format) -> None:
        writer, spoken = WRITERS[format], self._target.format
        reader = READERS[spoken]
        request = self._request(format)
        sent = json.dumps(reader.encode_request(request, self._target), ensure_ascii=False).encode()
        answer = await self._open(request_url(self._target, spoken), sent, {})
        client = self._body.value
        try:
            if client.get("stream") is not True:
                collector = Collector(spoken)
                async for batch in events(answer, self._decoder(reader.decoder)):
                    self._watch(batch)
                    self._look()
                    for event in batch:
                        collector.feed(event)
                response = collector.response()
                response.model = str(client.get("model", ""))
                await self._start(200, {"content-type": "application/json"})
                await self._write(json.dumps(writer.encode_answer(response, request), ensure_ascii=False).encode())
            else:
                encoder = writer.encoder(request, client, spoken)
                try:
                    async for batch in events(answer, self._decoder(reader.decoder)):
                        self._watch(batch)
                        failed = next((event for event in batch if isinstance(event, Failed)), None)
                        written = b"".join(encoder.feed(event) for event in batch if not isinstance(event, Failed))
                        if failed is not None and not self.started:
                            raise failure(failed.kind, failed.message)
                        if written:
                            if not self.started:
                                await self._start(200, _STREAM_HEADERS)
                            await self._write(written)
                        if failed is not None:
                            raise failure(failed.kind, failed.message)
                        self._look()
                except RunraError as error:
                    if self.started:
                        await self._write(encoder.fail(kind_of(error), error.message))
                    raise
                if not self.started:
                    await self._start(200, _STREAM_HEADERS)
                await self._write(encoder.finish())
            await self._finish()
        finally:
            answer.close()

    def _request(self, format: Format) -> LLMRequest:
        """The client's request in the neutral form, made fit for the model."""
        target = self._target
        body = {**self._body.value, **permitted(self._run.limits, format, self._body.value)}
        try:
            request = WRITERS[format].decode_request(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise failure("invalid", f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if not target.images and has_images(request):
            raise unsupported("images")
        changes: dict[str, Any] = {"messages": [self._signed(message) for message in request.messages]}
        if request.max_tokens is not None and target.max_output_tokens is None and not target.provider.key_needed:
            changes["max_tokens"] = min(request.max_tokens, _LOCAL_MAX_TOKENS)
        return request.model_copy(update=changes)

    def _signed(self, message: Message) -> Message:
        """The message with the signatures its tool calls once came with."""
        if isinstance(message.content, str):
            return message
        blocks = [
            block.model_copy(update={"signature": self._run.signature(block.id)})
            if isinstance(block, ToolUseBlock) and not block.signature
            else block
            for block in message.content
        ]
        return message.model_copy(update={"content": blocks})

    def _decoder(self, make: Callable[[], Decoder]) -> Decoder:
        return _Remembering(make(), self._run)

    # -- both ---------------------------------------------------------------------------------------------------------

    async def _open(self, url: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        def retried(error: RunraError, wait: float) -> None:
            self._call.retries += 1

        self._call.sent = True
        try:
            answer = await self._upstream.open(self._target, url, body, headers, retried)
        except RunraError:
            self._call.sent = False  # the provider refused it: nothing was used
            raise
        self._call.first_byte_ms = round((time.monotonic() - self._call.began) * 1000, 1)
        return answer

    def _watch(self, batch: list[StreamEvent]) -> None:
        call = self._call
        for event in batch:
            if isinstance(event, Delta):
                call.characters += len(event.text)
            elif isinstance(event, Counted):
                call.usage = event.usage
            elif isinstance(event, Stopped):
                call.stopped = True
            elif isinstance(event, Failed):
                call.error = event.kind

    def _look(self) -> None:
        """Stop in the middle of an answer when it has used up the budget."""
        call = self._call
        if self._run.limits.max_cost is None or call.characters - self._looked < _LOOK_EVERY:
            return
        self._looked = call.characters
        if self._run.over():
            raise failure("budget", f"the run's budget of {self._run.limits.max_cost:.4f} US dollars is spent")

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self.started = True
        await _soon(self._sink.start(status, headers))

    async def _write(self, piece: bytes) -> None:
        cleaned = self._redactor.feed(piece)
        if cleaned:
            await _soon(self._sink.write(cleaned))

    async def _finish(self) -> None:
        held = self._redactor.finish()
        if held:
            await _soon(self._sink.write(held))

    async def _tell(self, format: Format, error: RunraError) -> None:
        """The failure as the stream's last event, where the stream has begun."""
        if self.started:
            encoder = WRITERS[format].encoder(LLMRequest(messages=[]), self._body.value, format)
            await _soon(self._sink.write(self._redactor.finish() + b"\n\n"))
            await _soon(self._sink.write(encoder.fail(kind_of(error), error.message)))


class _Remembering:
    """A decoder that keeps the signatures of tool calls for the run."""

    def __init__(self, inner: Decoder, run: Run) -> None:
        self._inner = inner
        self._run = run
        self._ids: dict[int, str] = {}

    @property
    def done(self) -> bool:
        return self._inner.done

    def feed(self, event: Any) -> list[StreamEvent]:
        batch = self._inner.feed(event)
        for one in batch:
            if isinstance(one, BlockStarted) and one.kind == "tool":
                self._ids[one.index] = one.id
            elif isinstance(one, BlockEnded) and one.signature and one.index in self._ids:
                self._run.remember(self._ids[one.index], one.signature)
        return batch


def _passed_headers(answer: Answer) -> dict[str, str]:
    names = ("content-type", "request-id", "x-request-id")
    return {name: answer.headers[name] for name in names if name in answer.headers}


async def _soon(write: Awaitable[None]) -> None:
    """A write with a deadline: a client that stops reading must not hold a call for ever."""
    try:
        async with asyncio.timeout(WRITE_S):
            await write
    except TimeoutError:
        raise ConnectionResetError("the client stopped reading") from None
