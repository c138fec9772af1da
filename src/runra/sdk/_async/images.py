"""Images: pull, import, build, commit, list, delete."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any
from urllib.parse import quote

from runra.contract import ImageCommit, ImageInfo, ImagePrune, ImagePull, ImagePulling, ImagesPruned, ImageTag
from runra.errors import RunraError
from runra.sdk._async.api import AsyncApi
from runra.sdk._async.events import AsyncEventStream
from runra.sdk._async.sandbox import AsyncSandbox
from runra.sdk._async.sandboxes import AsyncSandboxes
from runra.sdk._async.transfer import pulled
from runra.sdk.bodies import AsyncContent
from runra.sdk.concurrency_async import AsyncSignal, AsyncWorker, call_back
from runra.sdk.failures import CommandFailed
from runra.sdk.gaps import EventGap
from runra.sdk.output import OutputChunk
from runra.sdk.types import ImageProgress, RawPage, checked, merged, parsed
from runra.sdk.wire import TAR, sandbox_path

#: How long a pull, an import or a build step may take unless the call says otherwise, in ms: the server's own bound.
_LONG_MS = 900_000
#: Longer than the server's own bound on a pull, so that its reason for failing is heard, in ms.
_MARGIN_MS = 60_000
#: Where the steps of recipes are kept, by what they are made of.
_STEPS = "build-steps"
#: The most layers of an image; and from how many on the further steps of a recipe share one, so that some stay free.
_MOST_LAYERS = 127
_SHARE_FROM = 100
#: How often a pull is asked for again when its events went missing.
_MOST_GAPS = 10
_CLOSE_S = 5.0
_PAGE = 100


class AsyncImages:
    """The images of this server that this key's organization may use. Changing them takes the scope `admin:*`."""

    def __init__(self, api: AsyncApi) -> None:
        self._api = api

    async def list(self, *, steps: bool = False) -> list[ImageInfo]:
        """All images, newest first. `steps` shows those that recipes left on their way as well."""
        found: list[ImageInfo] = []
        while True:
            answer = await self._api.call(
                "GET", "/images", params={"steps": steps, "limit": _PAGE, "offset": len(found)}
            )
            page = parsed(RawPage, answer.json("GET /images"), "GET /images")
            found += [parsed(ImageInfo, item, "GET /images") for item in page.data]
            if not page.pagination.has_more or not page.data:
                return found

    async def get(self, reference: str) -> ImageInfo:
        """An image by name; one that is being pulled has the state `pulling`. Raises INVALID_REQUEST (status 404)."""
        answer = await self._api.call("GET", _path(reference))
        return parsed(ImageInfo, answer.json("GET /images"), "GET /images")

    async def delete(self, reference: str) -> ImageInfo:
        """Forget an image. Sandboxes made from it live on. Raises INVALID_REQUEST (status 404)."""
        answer = await self._api.call("DELETE", _path(reference))
        return parsed(ImageInfo, answer.json("DELETE /images"), "DELETE /images")

    async def prune(self, *, unused_for_ms: int = 0) -> ImagesPruned:
        """Delete images that no sandbox uses, and that none has used for so long."""
        request = checked(ImagePrune, {"unusedForMs": unused_for_ms})
        answer = await self._api.call("POST", "/images/prune", content=request.to_wire(), timeout_ms=_LONG_MS)
        return parsed(ImagesPruned, answer.json("POST /images/prune"), "POST /images/prune")

    async def pull(
        self,
        reference: str,
        *,
        username: str | None = None,
        password: str | None = None,
        shared: bool | None = None,
        on_progress: Callable[[ImageProgress], Any] | None = None,
        timeout_ms: int = _LONG_MS + _MARGIN_MS,
    ) -> ImageInfo:
        """Pull an image, or refresh one that is here; returns when it is ready.

        With `username` and `password` (kept for this pull alone) the image is this organization's own unless `shared`;
        without, every organization may use it. Raises INVALID_REQUEST when there is no such image or no right to it,
        RATE_LIMITED, RESOURCE_EXHAUSTED when the disk is full, INTERNAL_ERROR when the registry cannot be reached,
        EXECUTION_TIMEOUT when `timeout_ms` are over (the pull goes on).
        """
        following = self.pulling(reference, username=username, password=password, shared=shared, timeout_ms=timeout_ms)
        async with aclosing(following) as steps:
            async for step in steps:
                if on_progress is not None:
                    await call_back(on_progress, step)
        return await self.get(reference)

    async def pulling(
        self,
        reference: str,
        *,
        username: str | None = None,
        password: str | None = None,
        shared: bool | None = None,
        timeout_ms: int = _LONG_MS + _MARGIN_MS,
    ) -> AsyncGenerator[ImageProgress, None]:
        """Pull an image like `pull`, and give its progress as it comes; the end of the iteration is the image's
        arrival. Where events are missing, as after a restart of the server, the pull is asked for again: the server
        goes on with the one it has, else with what had come."""
        credentials = None if username is None else {"username": username, "password": password or ""}
        given = {"reference": reference, "credentials": credentials, "shared": shared}
        request = checked(ImagePull, merged(None, given, "pull"))
        content = request.to_wire()
        if credentials is not None:
            content["credentials"] = credentials  # the model would mask the password
        told = await self._asked(content)
        over, late, missed = AsyncSignal(), AsyncSignal(), AsyncSignal()

        async def lost(_gap: EventGap) -> None:
            missed.set()
            await stream.close()

        def follow() -> AsyncEventStream:
            return AsyncEventStream(self._api, "/events", after=told.after, types=["image.*"], on_gap=lost)

        async def deadline() -> None:
            if not await over.wait(timeout_ms / 1000):
                late.set()
                await stream.close()

        stream = follow()
        worker = AsyncWorker("runra-pull", deadline)
        try:
            for _ in range(_MOST_GAPS):
                async for event in stream:
                    if event.data.get("pullId") != told.pull_id:
                        continue
                    if event.type == "image.progress":
                        yield ImageProgress.of(event.data)
                    elif event.type == "image.error":
                        raise _failure(event.data, told.reference)
                    elif event.type == "image.ready":
                        return
                if late.is_set() or not missed.is_set():
                    break
                # It may have ended, well or not, or never have been heard of: only the server knows.
                told = await self._asked(content)
                missed.clear()
                stream = follow()
                if late.is_set():  # since, and it was the stream before that was closed
                    break
        finally:
            over.set()
            await stream.close()
            await worker.close(_CLOSE_S)
        if missed.is_set() and not late.is_set():
            raise RunraError(
                "INTERNAL_ERROR",
                f"events of pulling {told.reference} went missing {_MOST_GAPS} times; `images.get` tells how far it is",
                details={"reference": told.reference},
                retryable=True,
            )
        raise RunraError(
            "EXECUTION_TIMEOUT",
            f"image {told.reference} was not here after {timeout_ms} ms; the pull goes on, `images.get` tells how far",
            details={"reference": told.reference, "timeoutMs": timeout_ms},
        )

    async def _asked(self, content: Mapping[str, Any]) -> ImagePulling:
        # Asked twice, it is still one pull.
        answer = await self._api.call("POST", "/images", content=content, safe=True)
        return parsed(ImagePulling, answer.json("POST /images"), "POST /images")

    async def import_(
        self, content: AsyncContent, *, name: str | None = None, shared: bool = False, timeout_ms: int = _LONG_MS
    ) -> ImageInfo:
        """Import an image from a tar: an OCI image layout, what `docker save` writes, or a root file system (which
        needs a `name`). `content` is bytes, a file object or an iterable of bytes."""
        answer = await self._api.call(
            "POST",
            "/images/import",
            params={"name": name, "shared": shared},
            body=lambda: pulled([content] if isinstance(content, bytes) else content),
            media=TAR,
            replayable=False,
            timeout_ms=timeout_ms,
        )
        return parsed(ImageInfo, answer.json("POST /images/import"), "POST /images/import")

    async def commit(
        self, sandbox_id: str, name: str, *, shared: bool = False, step: bool = False, timeout_ms: int = _LONG_MS
    ) -> ImageInfo:
        """Make an image of a sandbox's files as they are now. Raises INVALID_STATE for a sandbox of image `host`."""
        request = checked(ImageCommit, {"reference": name, "shared": shared, "step": step})
        path = sandbox_path(sandbox_id, "commit")
        answer = await self._api.call("POST", path, content=request.to_wire(), timeout_ms=timeout_ms)
        return parsed(ImageInfo, answer.json(f"POST {path}"), f"POST {path}")

    async def tag(self, image: str, name: str, *, shared: bool = False) -> ImageInfo:
        """Give an image that is here another name; it takes no more room. Raises INVALID_REQUEST (status 404)."""
        request = checked(ImageTag, {"image": image, "reference": name, "shared": shared})
        answer = await self._api.call("POST", "/images/tag", content=request.to_wire())
        return parsed(ImageInfo, answer.json("POST /images/tag"), "POST /images/tag")

    async def build(
        self,
        name: str,
        *,
        base: str,
        run: Sequence[str],
        env: Mapping[str, str] | None = None,
        shared: bool = False,
        on_output: Callable[[OutputChunk], Any] | None = None,
        on_step: Callable[[str, bool], Any] | None = None,
        timeout_ms: int = 4 * _LONG_MS,
        **options: Any,
    ) -> ImageInfo:
        """Make the image `name` of `base` (pulled if need be) by running commands in it, one after the other.

        Each step begins in a sandbox of what the one before left, and is kept as a layer of what it changed, by what it
        is made of: the same commands on the same base are not run again. `env` is there while they run and not in the
        image; `options` are those of `sandboxes.create`. `on_step` hears each command and whether it was kept from
        before, `on_output` what it says. The sandboxes are terminated. Raises CommandFailed for a command that fails;
        then nothing is named `name`.
        """
        below = await self._base(base)
        key = hashlib.sha256(json.dumps([below.digest, env or {}], sort_keys=True).encode())
        steps = []
        for command in run:
            key.update(b"\0" + command.encode())
            steps.append(f"{_STEPS}:{key.hexdigest()[:40]}")
        done, image = 0, base
        for number, step in enumerate(steps, 1):
            kept = await self._known(step)
            # On what has all the layers it may have, no further step fits.
            if kept is not None and (kept.layers < _MOST_LAYERS or number == len(steps)):
                done, image = number, step
        for command in run[:done]:
            if on_step is not None:
                await call_back(on_step, command, True)
        sandboxes = AsyncSandboxes(self._api)
        limits = {"timeout_ms": timeout_ms, "idle_timeout_ms": timeout_ms, **options}
        deadline = time.monotonic() + timeout_ms / 1000
        left = list(zip(run, steps, strict=True))[done:]
        while left:
            async with await sandboxes.create({**limits, "image": image, "env": dict(env or {})}) as box:
                layers = _SHARE_FROM
                while left and layers >= _SHARE_FROM:
                    command, image = left.pop(0)
                    if on_step is not None:
                        await call_back(on_step, command, False)
                    await _run(box, command, on_output, deadline)
                    layers = (await self.commit(box.id, image, step=True)).layers
        return await self.tag(image, name, shared=shared)

    async def _base(self, reference: str) -> ImageInfo:
        known = await self._known(reference)
        return known if known is not None and known.state == "ready" else await self.pull(reference)

    async def _known(self, reference: str) -> ImageInfo | None:
        try:
            return await self.get(reference)
        except RunraError as error:
            if error.status != 404:
                raise
            return None


async def _run(
    box: AsyncSandbox, command: str, on_output: Callable[[OutputChunk], Any] | None, deadline: float
) -> None:
    process = await box.exec(command, cwd="/", background=True)
    await process.close_stdin()
    if on_output is not None:
        async with aclosing(process.logs()) as chunks:
            async for chunk in chunks:
                await call_back(on_output, chunk)
    left = max(1, int((deadline - time.monotonic()) * 1000))
    result = await process.wait(timeout_ms=left)
    if result.exit_code != 0:
        raise CommandFailed(command, result)


def _path(reference: str) -> str:
    return f"/images/{quote(reference, safe='/:@')}"


def _failure(data: Mapping[str, Any], reference: str) -> RunraError:
    """The error an event tells of, as a call would have raised it."""
    body = {"error": {**data, "details": {"reference": reference}}}
    return RunraError.from_wire(400 if data.get("code") == "INVALID_REQUEST" else 500, body)
