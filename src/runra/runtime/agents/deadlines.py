"""The deadline of an agent's set-up, as every agent of a process keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from runra.errors import RunraError


@asynccontextmanager
async def setting_up(agent: str, timeout_ms: int) -> AsyncIterator[None]:
    """Raises EXECUTION_TIMEOUT, kind `setup`, when what is inside takes longer than `timeout_ms`."""
    limit = asyncio.timeout(timeout_ms / 1000)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():
            raise
        raise RunraError(
            "EXECUTION_TIMEOUT",
            f"{agent} was not started within setup_timeout_ms {timeout_ms}",
            details={"kind": "setup"},
        ) from None
