"""Sandboxes as a collection: create, find, list, end."""

# Made from `_async/sandboxes.py` by scripts/generate_sync.py: change that one.

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from runra.contract import REVEAL, SandboxInfo
from runra.contract import SandboxConfig as Config
from runra.sdk._sync.api import Api
from runra.sdk._sync.sandbox import Sandbox
from runra.sdk.concurrency_sync import undo
from runra.sdk.failures import Failure
from runra.sdk.types import ListOptions, RawPage, SandboxConfig, SandboxList, checked, merged, parsed
from runra.sdk.wire import Answer, new_key, sandbox_path

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from runra.sdk.types import SandboxOptions

#: How long an interrupted create may take to be found and taken back, in ms.
_UNDO_MS = 10_000
#: How long the server may take to pull an image, in ms.
_PULL_MS = 900_000


class Sandboxes:
    """Sandboxes of this key's organization."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def create(
        self,
        config: SandboxConfig | Config | Mapping[str, Any] | None = None,
        *,
        idempotency_key: str | None = None,
        **options: Unpack[SandboxOptions],
    ) -> Sandbox:
        """Create a sandbox; it is running when this returns.

        Give a `SandboxConfig`, a dict (snake_case or camelCase), keywords (they win), or a mix; only `image` is
        required. The server decides what is left unset and checks the ranges. The call is safe to repeat: it
        carries an Idempotency-Key, made here unless `idempotency_key` names one. As a context manager, the sandbox
        is terminated at the end of the block. Interrupted (cancelled, Ctrl-C), it takes back what it started.

        Raises RunraError INVALID_REQUEST for a bad option, RESOURCE_EXHAUSTED when the server is full, NETWORK_ERROR
        when no answer came; on a timeout, `details["idempotencyKey"]` repeated finds the sandbox if it was made.
        """
        body = checked(Config, merged(config, options, "create")).to_wire(REVEAL)
        key = idempotency_key or new_key()
        try:
            answer = self._api.call(
                "POST", "/sandboxes", content=body, key=key, timeout_ms=self._patience_ms(body["image"])
            )
        except Exception as error:
            _name_key(error, key)
            raise
        except BaseException:
            undo(lambda: self._take_back(body, key))
            raise
        return self._one(answer, "POST /sandboxes")

    def _patience_ms(self, image: str) -> int | None:
        """An image that is not on the server yet is pulled first, which the server bounds."""
        local = image == "host" or image.startswith("snapshot:")
        return None if local else self._api.settings.timeout_ms + _PULL_MS

    def _take_back(self, body: dict[str, Any], key: str) -> None:
        """Terminate what an interrupted create made: the same key finds it."""
        answer = self._api.call("POST", "/sandboxes", content=body, key=key, timeout_ms=_UNDO_MS)
        info = parsed(SandboxInfo, answer.json("POST /sandboxes"), "POST /sandboxes")
        self.terminate(info.id)

    def get(self, sandbox_id: str) -> Sandbox:
        """The sandbox with this id. Raises SANDBOX_NOT_FOUND."""
        answer = self._api.call("GET", sandbox_path(sandbox_id))
        return self._one(answer, "GET /sandboxes/{id}")

    def list(
        self,
        options: ListOptions | Mapping[str, Any] | None = None,
        *,
        state: Literal["creating", "running", "paused", "terminated"] | None = None,
        image: str | None = None,
        limit: int | None = None,
        offset: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> SandboxList[Sandbox]:
        """One page of sandboxes, newest first: iterable, with `data` and `pagination`. `iter` walks all pages.

        `limit` is 20 when unset, at most 100; `metadata` must match in every pair given.
        """
        keywords = {"state": state, "image": image, "limit": limit, "offset": offset, "metadata": metadata}
        filters = checked(ListOptions, merged(options, keywords, "list"))
        params: dict[str, str | int | bool | None] = {
            "state": filters.state,
            "image": filters.image,
            "limit": filters.limit,
            "offset": filters.offset,
        }
        params.update({f"metadata[{name}]": value for name, value in (filters.metadata or {}).items()})
        answer = self._api.call("GET", "/sandboxes", params=params)
        page = parsed(RawPage, answer.json("GET /sandboxes"), "GET /sandboxes")
        found = [Sandbox(self._api, parsed(SandboxInfo, item, "GET /sandboxes")) for item in page.data]
        return SandboxList(found, page.pagination)

    def iter(
        self,
        *,
        state: Literal["creating", "running", "paused", "terminated"] | None = None,
        image: str | None = None,
        metadata: Mapping[str, str] | None = None,
        page_size: int = 100,
    ) -> Iterator[Sandbox]:
        """Every matching sandbox, fetched page by page. One that a new sandbox pushes onto the next page comes once."""
        offset, before = 0, frozenset[str]()
        while True:
            page = self.list(state=state, image=image, metadata=metadata, limit=page_size, offset=offset)
            for sandbox in page.data:
                if sandbox.id not in before:
                    yield sandbox
            if not page.pagination.has_more or not page.data:
                return
            before = frozenset(sandbox.id for sandbox in page.data)
            offset += len(page.data)

    def pause(self, sandbox_id: str) -> Sandbox:
        """Pause a sandbox; pausing a paused one is fine."""
        answer = self._api.call("POST", sandbox_path(sandbox_id, "pause"), safe=True)
        return self._one(answer, "pause")

    def resume(self, sandbox_id: str) -> Sandbox:
        """Resume a paused sandbox; resuming a running one is fine."""
        answer = self._api.call("POST", sandbox_path(sandbox_id, "resume"), safe=True)
        return self._one(answer, "resume")

    def terminate(self, sandbox_id: str) -> Sandbox:
        """End a sandbox and free everything it had; terminating a terminated one is fine."""
        answer = self._api.call("DELETE", sandbox_path(sandbox_id), safe=True)
        return self._one(answer, "terminate")

    def _one(self, answer: Answer, doing: str) -> Sandbox:
        request_id = answer.headers.get("x-request-id", "")
        return Sandbox(self._api, parsed(SandboxInfo, answer.json(doing), doing, request_id))


def _name_key(error: Exception, key: str) -> None:
    """Let a caller whose create may still happen find it again."""
    if isinstance(error.__cause__, Failure) and error.__cause__.sent and hasattr(error, "details"):
        error.details["idempotencyKey"] = key
