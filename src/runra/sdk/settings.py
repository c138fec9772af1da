"""Which server, with which key: constructor, environment, configuration file, default, in this order."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from runra.errors import RunraError

DEFAULT_API_URL: Final = "http://127.0.0.1:7747"
DEFAULT_TIMEOUT_MS: Final = 30_000
DEFAULT_MAX_RETRIES: Final = 2


@dataclass(frozen=True)
class Settings:
    """What a client was made with, resolved. The key never shows up in a repr."""

    api_url: str
    api_key: str | None = field(repr=False)
    timeout_ms: int = DEFAULT_TIMEOUT_MS
    max_retries: int = DEFAULT_MAX_RETRIES
    #: Why there is no key, and what to do about it; empty when there is one.
    key_missing: str = ""

    @property
    def timeout_s(self) -> float:
        return self.timeout_ms / 1000

    @property
    def masked_key(self) -> str:
        """The key as it may be shown: its kind and its last four characters; empty when there is none."""
        key = self.api_key
        if not key:
            return ""
        head = next((kind for kind in ("rra_live_", "rra_test_") if key.startswith(kind)), "")
        tail = key[-4:] if len(key) - len(head) >= 16 else ""
        return f"{head}****{tail}"


def config_path() -> Path:
    """The configuration file: `RUNRA_CONFIG_PATH`, else `~/.runra/config.json`."""
    named = os.environ.get("RUNRA_CONFIG_PATH")
    return Path(named) if named else Path.home() / ".runra" / "config.json"


def resolve(
    api_key: str | None = None,
    api_url: str | None = None,
    timeout_ms: int = DEFAULT_TIMEOUT_MS,
    max_retries: int = DEFAULT_MAX_RETRIES,
) -> Settings:
    """Settle URL and key. A key from the file goes to the URL of that file and nowhere else.

    Raises INVALID_CONFIG for a URL, key, number or file that cannot be used. A missing key is no error here:
    `health()` needs none, and the first call that does says what to do.
    """
    _whole("timeout_ms", timeout_ms, 1)
    _whole("max_retries", max_retries, 0)
    url = api_url or os.environ.get("RUNRA_API_URL") or None
    key = api_key or os.environ.get("RUNRA_API_KEY") or None
    if url is not None and key is not None:
        return Settings(_url(url), _key(key), timeout_ms, max_retries)
    path = config_path()
    noted = _read(path)
    noted_url, noted_key = _text(noted, "apiUrl", path), _text(noted, "apiKey", path)
    home = _url(noted_url or DEFAULT_API_URL)
    chosen = _url(url) if url is not None else home
    missing = ""
    if key is None and noted_key is not None:
        if _same_server(chosen, home):
            key = noted_key
        else:
            missing = (
                f"no API key for {chosen}: the one in {path} belongs to {home} and is sent nowhere else; "
                "pass api_key=… or set RUNRA_API_KEY"
            )
    elif key is None:
        missing = (
            f"no API key: start a server on this machine with `runra serve` (it notes its key in {path}), "
            "or pass api_key=… or set RUNRA_API_KEY"
        )
    return Settings(chosen, _key(key) if key is not None else None, timeout_ms, max_retries, missing)


def _whole(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RunraError(
            "INVALID_CONFIG",
            f"{name}: must be a whole number of at least {least}, not {value!r}",
            details={"field": name},
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise RunraError(
            "INVALID_CONFIG",
            f"cannot read {path}: {reason}; repair or remove it, or set both RUNRA_API_URL and RUNRA_API_KEY",
            details={"path": str(path)},
        ) from None
    if not isinstance(content, dict):
        raise RunraError("INVALID_CONFIG", f"{path}: must hold one JSON object", details={"path": str(path)})
    return content


def _text(content: dict[str, Any], name: str, path: Path) -> str | None:
    value = content.get(name)
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise RunraError("INVALID_CONFIG", f"{path}: {name} must be a string", details={"field": name})
    return value


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return None
    if not usable or parts.username is not None or parts.query or parts.fragment:
        return None
    return parts


def _url(url: str) -> str:
    """The URL without a trailing slash or `/v1`."""
    cleaned = url.strip().rstrip("/").removesuffix("/v1").rstrip("/")
    if not cleaned.isascii() or not cleaned.isprintable() or " " in cleaned or _split(cleaned) is None:
        raise RunraError(
            "INVALID_CONFIG",
            f"api_url: {url!r} is none; give http://host:port or https://host, without user, query or fragment",
            details={"field": "api_url"},
        )
    return cleaned


def _key(key: str) -> str:
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise RunraError(
            "INVALID_CONFIG",
            "api_key: must be printable ASCII without spaces, as `runra auth create-key` shows it",
            details={"field": "api_key"},
        )
    return key


def _same_server(one: str, other: str) -> bool:
    def place(url: str) -> tuple[str, str, int, str]:
        parts = urlsplit(url)
        return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}[parts.scheme], parts.path

    return place(one) == place(other)
