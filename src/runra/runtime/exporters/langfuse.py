"""The exporter `langfuse`: traces to Langfuse, over its OTLP endpoint."""

from __future__ import annotations

import base64
import os
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from runra.errors import RunraError
from runra.runtime.exporters.delivery import Delivery, Secret
from runra.runtime.exporters.http import checked_url
from runra.runtime.exporters.otel import OtelConfig, OtelExporter


class LangfuseConfig(Delivery):
    """`public_key` and `secret_key` (else LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY), `host` (else LANGFUSE_HOST, else
    Langfuse's cloud in the EU), `environment` and `service_name` as shown there."""

    public_key: str | None = None
    secret_key: Secret | None = None
    host: Annotated[str, AfterValidator(checked_url)] | None = None
    environment: str | None = Field(None, pattern=r"^[a-z0-9_-]{1,40}$")
    service_name: str = "runra"


class LangfuseExporter(OtelExporter):
    """Langfuse takes traces alone, over http/protobuf, and reads the GenAI conventions from them."""

    name = "langfuse"
    Config = LangfuseConfig

    def __init__(self, config: LangfuseConfig) -> None:
        public = config.public_key or os.environ.get("LANGFUSE_PUBLIC_KEY", "")
        secret = (
            config.secret_key.get_secret_value() if config.secret_key else os.environ.get("LANGFUSE_SECRET_KEY", "")
        )
        if not public or not secret:
            raise RunraError(
                "INVALID_CONFIG",
                "langfuse: publicKey and secretKey are required; give them, or set LANGFUSE_PUBLIC_KEY and "
                "LANGFUSE_SECRET_KEY",
                details={"provider": "langfuse"},
            )
        host = config.host or os.environ.get("LANGFUSE_HOST") or "https://cloud.langfuse.com"
        basic = base64.b64encode(f"{public}:{secret}".encode()).decode()
        super().__init__(
            OtelConfig(
                endpoint=f"{host.rstrip('/')}/api/public/otel",
                headers={"Authorization": SecretStr(f"Basic {basic}")},
                service_name=config.service_name,
                resource_attributes=(
                    {"langfuse.environment": config.environment} if config.environment is not None else {}
                ),
                signals=["traces"],
                timeout_ms=config.timeout_ms,
            )
        )
