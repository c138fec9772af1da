"""The exporter `axiom`: batches to a dataset of Axiom, over its ingest API."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import AfterValidator, Field

from runra.errors import RunraError
from runra.event_catalogue import level_of
from runra.events import Event
from runra.runtime.exporters.delivery import Delivery, Secret
from runra.runtime.exporters.http import Poster, checked_url


class AxiomConfig(Delivery):
    """`token` (else AXIOM_TOKEN), `dataset`, `url` of the API, `org_id` for personal tokens (else AXIOM_ORG_ID)."""

    token: Secret | None = None
    dataset: str = Field("runra-events", min_length=1, max_length=128)
    url: Annotated[str, AfterValidator(checked_url)] = "https://api.axiom.co"
    org_id: str | None = None


class AxiomExporter:
    """Sends gzipped JSON. The time of an event is its own, not that of its arrival; `level` is added."""

    name = "axiom"
    Config = AxiomConfig

    def __init__(self, config: AxiomConfig) -> None:
        token = config.token.get_secret_value() if config.token else os.environ.get("AXIOM_TOKEN", "")
        if not token.strip():
            raise RunraError(
                "INVALID_CONFIG",
                "axiom.token: is required; give it, or set AXIOM_TOKEN",
                details={"field": "token", "provider": "axiom"},
            )
        self._url = f"{config.url.rstrip('/')}/v1/datasets/{quote(config.dataset, safe='')}/ingest"
        self._headers = {"Authorization": f"Bearer {token.strip()}", "Content-Type": "application/json"}
        org_id = config.org_id or os.environ.get("AXIOM_ORG_ID")
        if org_id:
            self._headers["X-Axiom-Org-Id"] = org_id
        self._poster = Poster(config.timeout_ms)

    async def start(self) -> None:
        return None

    async def export(self, events: Sequence[Event]) -> None:
        """Raises what the server refused; also when it took the batch but not every event of it."""
        rows = [
            {**event.model_dump(by_alias=True), "_time": event.timestamp, "level": level_of(event.type, event.data)}
            for event in events
        ]
        answer = await self._poster.post(self._url, _json(rows), self._headers, compress=True)
        failed, why = _failures(answer)
        if failed:
            raise RunraError(
                "INVALID_REQUEST",
                f"axiom refused {failed} of {len(events)} events: {why}",
                details={"failed": failed},
                retryable=False,
            )

    async def close(self) -> None:
        await self._poster.close()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _failures(answer: bytes) -> tuple[int, str]:
    """How many events the answer says were refused, and the first reason."""
    try:
        body = json.loads(answer)
    except ValueError:
        return 0, ""
    if not isinstance(body, dict) or not isinstance(body.get("failed"), int):
        return 0, ""
    failures = body.get("failures")
    first = failures[0] if isinstance(failures, list) and failures else {}
    return body["failed"], str(first.get("error", "") if isinstance(first, dict) else first)[:200]
