"""The operator's file about registries: mirrors, logins, certificates, by host.

{"docker.io": {"mirrors": ["https://mirror.example"]},
 "registry.example:5000": {"username": "robot", "password": "…", "caFile": "/etc/ssl/registry.pem"},
 "10.0.0.7:5000": {"insecure": true, "private": true}}
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.alias_generators import to_camel

from runra.errors import RunraError
from runra.node.settings import RegistrySettings


def _mirror(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise ValueError("a mirror is a URL such as https://mirror.example, without a login")
    return value.rstrip("/")


class _Entry(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True, hide_input_in_errors=True)

    mirrors: tuple[Annotated[str, AfterValidator(_mirror)], ...] = ()
    insecure: bool = False
    ca_file: Path | None = None
    username: str = ""
    password: str = ""
    private: bool = False


def read_registries(path: Path) -> dict[str, RegistrySettings]:
    """Raises INVALID_CONFIG for a file that cannot be, and for one with a login that others may read."""
    try:
        text = path.read_bytes()
        entries = TypeAdapter(dict[str, _Entry]).validate_json(text)
        mode = path.stat().st_mode
    except OSError as error:
        raise RunraError("INVALID_CONFIG", f"registries file {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RunraError("INVALID_CONFIG", f"registries file {path}: {where}: {first['msg']}") from None
    if mode & (stat.S_IRGRP | stat.S_IROTH) and any(entry.password for entry in entries.values()):
        raise RunraError(
            "INVALID_CONFIG", f"registries file {path} holds a password and others may read it: chmod 600 it"
        )
    return {host.lower(): RegistrySettings(**entry.model_dump()) for host, entry in entries.items()}
