"""The pulls under way: who joins which, how many there may be, and what each of them ends with."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import Final

from runra.errors import RunraError
from runra.events import EventLog
from runra.node.images.pull import Pull, Puller, Wanted
from runra.node.images.record import Image

log = logging.getLogger(__name__)

#: Pulls under way at once, and those that one organization's creates began; who comes then is told to come back.
_MOST_PULLS: Final = 16
_MOST_OF_ONE: Final = 4


class Pulls:
    """Begins pulls and lets others join. `keep` gives an image its name, `failed` hears what went wrong."""

    def __init__(
        self,
        puller: Puller,
        events: EventLog,
        timeout: float,
        keep: Callable[[Image], Awaitable[Image]],
        failed: Callable[[RunraError], object],
    ) -> None:
        self._puller = puller
        self._events = events
        self._timeout = timeout
        self._keep = keep
        self._failed = failed
        self._flying: dict[tuple[str, str, str, bool], Pull] = {}

    def __iter__(self) -> Iterator[Pull]:
        return iter(self._flying.values())

    def begin(self, wanted: Wanted, organization_id: str) -> Pull:
        """Begin a pull, or join the one under way. It ends by itself, whoever waits for it or no longer does."""
        # A create joins an administrator's too: that one may go wherever the create may, and stays afterwards.
        for same in (replace(wanted, private=True), wanted):
            if (flying := self._flying.get(same.key)) is not None:
                flying.organizations.add(organization_id)
                return flying
        if len(self._flying) >= _MOST_PULLS:
            raise RunraError(
                "RESOURCE_EXHAUSTED", f"{_MOST_PULLS} images are being pulled already; try again when one is here"
            )
        mine = sum(1 for pull in self if pull.asker == organization_id)
        if not wanted.private and mine >= _MOST_OF_ONE:
            raise RunraError(
                "RESOURCE_EXHAUSTED",
                f"{mine} images are being pulled for your organization already; try again when one is here",
                details={"limit": _MOST_OF_ONE},
            )
        pull = Pull(wanted, self._events, organization_id)
        pull.task = asyncio.create_task(self._run(pull), name=f"pull {wanted.reference.short}")
        # A failure nobody waits for is told by its event.
        pull.task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._flying[wanted.key] = pull
        return pull

    async def close(self) -> None:
        """End them; what they fetched is taken up by the next."""
        tasks = [pull.task for pull in self]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, pull: Pull) -> Image:
        started = time.monotonic()
        try:
            image = await self._fetched(pull)
        except RunraError as error:
            self._failed(error)
            pull.tell("image.error", code=error.code, message=error.message, retryable=error.retryable)
            raise
        except asyncio.CancelledError:
            pull.tell("image.error", code="INTERNAL_ERROR", message="the server is stopping", retryable=True)
            raise
        else:
            duration = int((time.monotonic() - started) * 1000)
            pull.tell("image.ready", digest=image.digest, sizeBytes=image.bytes, durationMs=duration)
            return image
        finally:
            del self._flying[pull.wanted.key]

    async def _fetched(self, pull: Pull) -> Image:
        """Raises nothing but RunraError, whatever a registry brings about: somebody waits to be told."""
        what = f"image {pull.reference.short}"
        try:
            async with asyncio.timeout(self._timeout):
                try:
                    return await self._puller.pull(pull, self._keep)
                except RunraError:
                    raise
                except OSError as error:
                    why = str(error) or type(error).__name__
                    raise RunraError("INTERNAL_ERROR", f"{what} could not be stored: {why}") from error
                except Exception as error:
                    log.exception("%s was not pulled", what)
                    raise RunraError(
                        "INTERNAL_ERROR",
                        f"{what} was not pulled, for a reason Runra did not foresee ({type(error).__name__}); the "
                        "server's log tells more",
                    ) from error
        except TimeoutError:
            raise RunraError(
                "INTERNAL_ERROR",
                f"{what} was not here within {self._timeout:.0f} s; what has come is kept: try again, or raise "
                "--pull-timeout",
                status=504,
                retryable=True,
            ) from None
