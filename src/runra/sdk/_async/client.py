"""The client: which server, with which key, and the way to everything on it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from runra.sdk.settings import DEFAULT_MAX_RETRIES, DEFAULT_TIMEOUT_MS, resolve

if TYPE_CHECKING:
    from runra.contract import Health
    from runra.sdk._async.admin import AsyncApiKeys, AsyncOrganizations
    from runra.sdk._async.events import AsyncEventStream
    from runra.sdk._async.images import AsyncImages
    from runra.sdk._async.kept import AsyncSnapshots, AsyncVolumes
    from runra.sdk._async.sandboxes import AsyncSandboxes
    from runra.sdk.gaps import GapHandler


class AsyncRunra:
    """A client of one Runra server.

    `api_key` and `api_url` come from here, else from `RUNRA_API_KEY` and `RUNRA_API_URL`, else from
    `~/.runra/config.json` (`RUNRA_CONFIG_PATH` names another file), else the URL is `http://127.0.0.1:7747`. A key
    from the file is only sent to the URL of that file. `timeout_ms` bounds each request (default 30,000 ms; a
    command has its own), `max_retries` the further attempts at what may be tried again (default 2). Close it, or
    use it in a `with` block, to free its connections. Raises RunraError INVALID_CONFIG for settings that cannot be.
    """

    def __init__(
        self,
        api_key: str | None = None,
        api_url: str | None = None,
        timeout_ms: int = DEFAULT_TIMEOUT_MS,
        max_retries: int = DEFAULT_MAX_RETRIES,
    ) -> None:
        self._settings = resolve(api_key, api_url, timeout_ms, max_retries)
        # Here rather than above: these cost more to import than the rest of `import runra`.
        from runra.sdk._async.admin import AsyncApiKeys, AsyncOrganizations
        from runra.sdk._async.api import AsyncApi
        from runra.sdk._async.sandboxes import AsyncSandboxes

        self._api = AsyncApi(self._settings)
        self._sandboxes = AsyncSandboxes(self._api)
        self._api_keys = AsyncApiKeys(self._api)
        self._organizations = AsyncOrganizations(self._api)

    @property
    def sandboxes(self) -> AsyncSandboxes:
        """Create, find and end sandboxes."""
        return self._sandboxes

    @property
    def snapshots(self) -> AsyncSnapshots:
        """List and delete snapshots; `sandbox.snapshot()` takes one."""
        from runra.sdk._async.kept import AsyncSnapshots

        return AsyncSnapshots(self._api)

    @property
    def volumes(self) -> AsyncVolumes:
        """Create, list and delete volumes."""
        from runra.sdk._async.kept import AsyncVolumes

        return AsyncVolumes(self._api)

    @property
    def images(self) -> AsyncImages:
        """Pull, import, build, list and delete images (changing them: scope `admin:*`)."""
        # Made when asked for: few clients do, and `import runra` need not pay for it.
        from runra.sdk._async.images import AsyncImages

        return AsyncImages(self._api)

    @property
    def api_keys(self) -> AsyncApiKeys:
        """Create, list and revoke API keys (scope `admin:*`)."""
        return self._api_keys

    @property
    def organizations(self) -> AsyncOrganizations:
        """Create and list organizations (scope `admin:*`)."""
        return self._organizations

    @property
    def api_key(self) -> str:
        """The key, masked; empty when there is none."""
        return self._settings.masked_key

    @property
    def api_url(self) -> str:
        return self._settings.api_url

    @property
    def timeout_ms(self) -> int:
        return self._settings.timeout_ms

    @property
    def max_retries(self) -> int:
        return self._settings.max_retries

    async def health(self) -> Health:
        """Ask the server whether it is well; needs no key. Raises NETWORK_ERROR when there is none."""
        from runra.contract import Health
        from runra.sdk.types import parsed

        answer = await self._api.call("GET", "/health", public=True)
        return parsed(Health, answer.json("GET /health"), "GET /health")

    def events(
        self, *, after: str | None = None, types: Sequence[str] | None = None, on_gap: GapHandler | None = None
    ) -> AsyncEventStream:
        """Every event of this key's organization from now on, or after the id `after`; see `AsyncEventStream`.

        `types`: only such, as `exec.completed` or `sandbox.*`; `exec.streamed`, what commands print, has to be named.
        """
        from runra.sdk._async.events import AsyncEventStream

        return AsyncEventStream(self._api, "/events", after=after, types=types, on_gap=on_gap)

    async def close(self) -> None:
        """Free every connection and stop what follows events. Sandboxes live on."""
        await self._api.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.api_url} key={self.api_key!r}>"
