"""Programs of this machine that some commands need beside Runra itself."""

from __future__ import annotations

import shutil

from runra.errors import RunraError


def tool(name: str, package: str, what: str) -> str:
    """Where a program of this machine is. Raises INVALID_CONFIG with how to get it."""
    program = shutil.which(name)
    if program is None:
        raise RunraError(
            "INVALID_CONFIG", f"{name} is not installed here, which Runra needs {what}: apt-get install {package}"
        )
    return program
