"""Build hook: compiles the in-sandbox agent, the launcher and the relay (C, static) with the package on Linux.

The SDK alone needs none, so a machine without a compiler still gets it; `runra serve` and `runra doctor`
then say what to install. RUNRA_REQUIRE_NATIVE=1 makes a failed compilation an error.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: Program -> folder whose C files make it.
PROGRAMS = {"runra-agent": "guest", "runra-launcher": "launcher", "runra-relay": "guest/relay"}
PROGRAM_FLAGS = ["-static", "-fstack-protector-strong", "-D_FORTIFY_SOURCE=2"]
#: Shared libraries that programs inside are given; without a C library, as they meet the one of the program.
LIBRARIES = {"runra-preload.so": "guest/preload"}
LIBRARY_FLAGS = ["-shared", "-fPIC", "-nostdlib"]
#: What the runtime puts into sandboxes lies with the runtime: an installation without a server has it, too.
OF_THE_RUNTIME = {"runra-relay"}
FLAGS = [
    *("-std=c11", "-D_GNU_SOURCE", "-O2", "-g1"),
    *("-Wall", "-Wextra", "-Werror", "-Wshadow", "-Wconversion", "-Wstrict-prototypes", "-Wvla", "-Wformat=2"),
    *("-Wimplicit-fallthrough", "-Wno-sign-conversion"),
]


def compile_all(root: Path) -> None:
    """Compile every program into its package's `bin`, each replaced in one step. Raises RuntimeError with the cure."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("no C compiler: apt-get install gcc libc6-dev, then reinstall runra[server]")
    for program, folder in {**PROGRAMS, **LIBRARIES}.items():
        kind = LIBRARY_FLAGS if program in LIBRARIES else PROGRAM_FLAGS
        sources = sorted(str(path) for path in (root / folder).glob("*.c"))
        out = root / "src/runra" / ("runtime" if program in OF_THE_RUNTIME else "node") / "bin"
        out.mkdir(parents=True, exist_ok=True)
        target = out / program
        fresh = out / f".{program}.new"
        done = subprocess.run(  # noqa: S603 - the compiler the builder named
            [compiler, *FLAGS, *kind, "-o", str(fresh), *sources], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"compiling {folder}/ failed:\n{done.stderr}")
        fresh.replace(target)


class NativeBuildHook(BuildHookInterface[Any]):
    """hatchling calls `initialize` before it packs a wheel, editable ones included."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or not sys.platform.startswith("linux"):
            return
        root = Path(self.root)
        try:
            compile_all(root)
        except RuntimeError as error:
            if os.environ.get("RUNRA_REQUIRE_NATIVE") == "1":
                raise
            self.app.display_warning(f"runra: built without the server's native parts: {error}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sysconfig.get_platform().replace('-', '_').replace('.', '_')}"


if __name__ == "__main__":
    compile_all(Path(__file__).parent)
