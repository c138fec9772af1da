"""What a create's `image` stands for: this host itself, a snapshot, or an image, which may have to be fetched first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from runra.errors import RunraError
from runra.node.images import Resolver, RootFilesystem, host
from runra.node.sandbox import Sandbox


class Roots:
    """Gives sandboxes their roots. `images` takes every name that has no resolver of its own."""

    def __init__(self, images: Resolver) -> None:
        self._images = images
        #: By an image's whole name, or by a prefix that ends with a colon.
        self.resolvers: dict[str, Resolver] = {"host": self._of_host}
        self._host_image: RootFilesystem | None = None
        #: Waits for images, by the id of the sandbox that is to be made of it.
        self._waits: dict[str, asyncio.Timeout] = {}

    async def start(self, folder: Path) -> None:
        """Prepare the image `host` in this folder."""
        self._host_image = await asyncio.to_thread(host.prepare, folder)

    @asynccontextmanager
    async def resolved(self, sandbox: Sandbox, resolve: Resolver | None = None) -> AsyncIterator[RootFilesystem]:
        """The root its image stands for, or `resolve` gives in its place; its layers stay while this is entered. An
        image may take minutes to come: whoever terminates the sandbox meanwhile ends the wait as well."""
        name, organization_id = sandbox.config.image, sandbox.organization_id
        kind = name.partition(":")[0] + ":"
        resolve = resolve or self.resolvers.get(name) or self.resolvers.get(kind) or self._images
        async with AsyncExitStack() as held:
            try:
                async with asyncio.timeout(None) as self._waits[sandbox.id]:
                    root = await held.enter_async_context(resolve(name, organization_id))
            except TimeoutError:
                raise RunraError(
                    "INVALID_STATE", f"sandbox {sandbox.id} was terminated while its image was being fetched"
                ) from None
            finally:
                del self._waits[sandbox.id]
            yield root

    def give_up(self, sandbox_id: str) -> None:
        """It has been terminated: nobody waits for its image any more."""
        if (wait := self._waits.get(sandbox_id)) is not None:
            wait.reschedule(0)

    @asynccontextmanager
    async def _of_host(self, name: str, organization_id: str) -> AsyncIterator[RootFilesystem]:
        assert self._host_image is not None
        yield self._host_image
