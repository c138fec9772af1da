"""Which version of each agent's command line Runra is tested with, and how npm gets it: `pins.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from runra.errors import RunraError
from runra.sdk.types import refused

_HERE: Final = Path(__file__).with_name("pins.toml")


class Pin(BaseModel):
    """One agent's package. The fields are explained in `pins.toml`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    package: str = Field(pattern=r"^(@[a-z0-9._-]+/)?[a-z0-9._-]+$")
    version: str = Field(pattern=r"^[A-Za-z0-9.+:/@_-]+$")
    program: str = Field(pattern=r"^[A-Za-z0-9._-]+$")
    check: str = Field(min_length=1)
    scripts: list[str] = []

    @property
    def words(self) -> list[str]:
        """What follows `npm install --global`."""
        allowed = [f"--allow-scripts={','.join(self.scripts)}"] if self.scripts else []
        return [
            *allowed,
            "--no-fund",
            "--no-audit",
            "--no-update-notifier",
            "--loglevel=error",
            f"{self.package}@{self.version}",
        ]


_PINS: Final = TypeAdapter(dict[str, Pin])


def pins(path: Path | None = None) -> Mapping[str, Pin]:
    """The pins by agent: Runra's own, or those of your file `path`. Raises INVALID_CONFIG for one that is none."""
    path = path or _HERE
    try:
        return _PINS.validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise RunraError("INVALID_CONFIG", f"cannot read {path}: {error.strerror}") from None
    except ValidationError as error:
        raise RunraError("INVALID_CONFIG", f"{path}: {refused(error).message}") from None
    except ValueError as error:
        raise RunraError("INVALID_CONFIG", f"{path} is no TOML: {error}") from None
