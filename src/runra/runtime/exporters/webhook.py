"""The exporter `webhook`: batches as signed JSON to a URL of yours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field

from runra import webhooks
from runra.events import Event
from runra.runtime.exporters.delivery import Delivery, Secret
from runra.runtime.exporters.http import Poster, checked_url


class WebhookConfig(Delivery):
    """`url` and the `secret` deliveries are signed with (`runra.webhooks.new_secret()` makes one; `verify` checks on
    the other side). `headers` are sent along."""

    url: Annotated[str, AfterValidator(checked_url)]
    secret: Secret
    headers: dict[str, Secret] = Field(default_factory=dict)


class WebhookExporter:
    """Sends `{"events": […]}`. A repeated delivery has the same `webhook-id`, so its receiver can tell."""

    name = "webhook"
    Config = WebhookConfig

    def __init__(self, config: WebhookConfig) -> None:
        self._url = config.url
        self._secret = config.secret.get_secret_value()
        webhooks.sign(self._secret, "", 0, b"")  # a secret that is none is told now
        self._headers = {name: value.get_secret_value() for name, value in config.headers.items()}
        self._poster = Poster(config.timeout_ms)

    async def start(self) -> None:
        return None

    async def export(self, events: Sequence[Event]) -> None:
        body = b'{"events":[' + b",".join(event.model_dump_json(by_alias=True).encode() for event in events) + b"]}"
        id = "dlv_" + hashlib.sha256("\n".join(event.id for event in events).encode()).hexdigest()[:24]
        await self._poster.post(self._url, body, {**self._headers, **webhooks.headers(self._secret, id, body)})

    async def close(self) -> None:
        await self._poster.close()
