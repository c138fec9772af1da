"""What a registry's answers mean when they are not what was asked for, as errors that say what to do."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp

from runra.errors import RunraError

#: Seconds for all of an answer that is no blob.
_WHOLE: Final = 60.0


class TryAgain(Exception):
    """It may work in a moment; `wait` is what the registry asked for, in seconds."""

    def __init__(self, error: RunraError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


def refused(name: str, host: str, response: aiohttp.ClientResponse, *, login: bool) -> RunraError | TryAgain:
    """What an answer with a status other than 2xx means; `login` is whether the call had one."""
    status = response.status
    details = {"reference": name, "host": host, "status": status}
    if status in (401, 403):
        had = "the login it was given" if login else "a call without a login"
        return RunraError(
            "INVALID_REQUEST",
            f"registry {host} answers {had} with {status} for {name}: there is no such image, or it is private; "
            "check the name, or pull it with credentials (runra image pull --username)",
            details=details,
        )
    if status == 404:
        return RunraError(
            "INVALID_REQUEST", f"registry {host} has no image {name}; check name and tag", details=details
        )
    if status == 429:
        wait = response.headers.get("Retry-After", "")
        error = RunraError(
            "RATE_LIMITED",
            f"registry {host} limits how often it is asked; wait, use a login or a mirror",
            details=details,
        )
        return TryAgain(error, float(wait) if wait.isascii() and wait.isdigit() else None)
    error = RunraError(
        "INTERNAL_ERROR",
        f"registry {host} answered {status} for {name}",
        details=details,
        status=502,
        retryable=True,
    )
    return TryAgain(error) if status >= 500 else error


def lost(name: str, host: str, error: BaseException) -> RunraError:
    """For a registry that does not answer, or not to the end."""
    why = str(error) or ("nothing came in time" if isinstance(error, TimeoutError) else type(error).__name__)
    return RunraError(
        "INTERNAL_ERROR",
        f"registry {host} cannot be reached for {name}: {why[:300]}; check the name and this "
        "server's network, name a mirror (`runra serve --registries`), or bring a file (`runra image import`)",
        details={"reference": name, "host": host},
        status=502,
        retryable=True,
    )


def strange(name: str, response: aiohttp.ClientResponse, what: str) -> RunraError:
    """For an answer that no registry should give."""
    return RunraError(
        "INVALID_REQUEST",
        f"registry {response.url.raw_host} {what} ({name})",
        details={"reference": name, "host": response.url.raw_host},
    )


async def read(response: aiohttp.ClientResponse, most: int) -> bytes | None:
    """The body, or None when it is longer than it may be. Raises TimeoutError when it comes too slowly."""
    found = bytearray()
    try:
        async with asyncio.timeout(_WHOLE):
            async for part in response.content.iter_chunked(65_536):
                found += part
                if len(found) > most:
                    return None
    except TimeoutError:
        raise TimeoutError(f"its answer did not come whole within {_WHOLE:.0f} s") from None
    return bytes(found)
