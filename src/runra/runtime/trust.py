"""What a project's file may not decide by itself: where the user's secrets and events go, and what is imported."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from runra.errors import RunraError
from runra.sdk.settings import config_path

#: The variable that trusts the folder worked in, and the list of trusted folders in the user's own file.
VARIABLE: Final = "RUNRA_TRUST_PROJECT"
LIST: Final = "trustedProjects"
_ADDRESS: Final = re.compile(r"url|uri|endpoint|host|domain|proxy|address|dsn|server", re.IGNORECASE)
_SECRET: Final = re.compile(r"key$|token$|secret|passw|credential|^headers$|cookie", re.IGNORECASE)
#: The options of each section that stand in for the secrets its provider would take from the environment.
_OWN_KEYS: Final = {
    "sandbox": ("sandbox.apiKey", "sandbox.config.apiKey", "sandbox.config.masterToken"),
    "llm": ("llm.config.apiKey", "llm.config.api_key"),
}
#: The same for exporters.
_EXPORTER_KEYS: Final = {
    "axiom": ("token",),
    "langfuse": ("secretKey", "secret_key"),
    "otel": ("headers",),
    "webhook": ("secret",),
}


def is_trusted(folder: Path) -> bool:
    """Whether the user has said that files of this folder may decide anything."""
    if os.environ.get(VARIABLE, "").strip().lower() in ("1", "true", "yes"):
        return True
    try:
        listed = json.loads(config_path().read_text(encoding="utf-8")).get(LIST, [])
    except (OSError, ValueError, AttributeError):
        return False  # a file that cannot be read is refused elsewhere, by name
    real = folder.resolve()
    return isinstance(listed, list) and any(
        isinstance(one, str) and one and real.is_relative_to(Path(one).expanduser().resolve()) for one in listed
    )


def check_project(values: Mapping[str, Any], sources: Mapping[str, str], project: str) -> None:
    """Refuse what the file `project`, which nobody vouched for, would send elsewhere or load: an address whose key is
    not that file's own, an exporter to import, a file to write outside of the folder.

    Anybody can put such a file into a repository, and it takes effect where one merely starts a program. `values` and
    `sources` are the options in force. Raises INVALID_CONFIG naming the option and how to trust the folder.
    """
    for section in ("sandbox", "llm"):
        for path in (path for path, source in sources.items() if source == project):
            if path.partition(".")[0] != section or not _leads_away(path, _at(values, path)):
                continue
            if not _own_key(section, values, sources, project, path == "sandbox.apiUrl"):
                raise _refusal(project, path, "gives an address, but not the key that is sent there")
    if sources.get("observability.exporters") == project:
        for number, one in enumerate(_at(values, "observability.exporters") or ()):
            _check_exporter(one, f"observability.exporters.{number}", project)


def _own_key(
    section: str, values: Mapping[str, Any], sources: Mapping[str, str], project: str, is_api_url: bool
) -> bool:
    """Whether every secret that would be sent is the file's own, and there is one to send."""
    # A key of the user's file is held to that file's address by a rule of its own.
    if is_api_url and sources.get("sandbox.apiKey") not in (None, "constructor", "environment", project):
        return True
    own = any(str(_at(values, path) or "").strip() and sources.get(path) == project for path in _OWN_KEYS[section])
    foreign = any(
        source != project and path.startswith(f"{section}.") and ".defaults." not in path
        for path, source in sources.items()
        if any(_SECRET.search(part) for part in path.split("."))
    )
    return own and not foreign


def _check_exporter(one: Mapping[str, Any], where: str, project: str) -> None:
    provider, config = one.get("provider"), one.get("config") or {}
    if provider == "custom":
        raise _refusal(project, f"{where}.config.exporter", "names code to import")
    if not isinstance(config, Mapping):
        return  # refused as what it is
    if provider == "jsonl" and not _inside(str(config.get("path", ".")), Path(project).parent):
        raise _refusal(project, f"{where}.config.path", "names a file outside of its folder")
    for name, value in config.items():
        if not _leads_away(name, value):
            continue
        if provider == "postgres" and isinstance(value, str) and urlsplit(value).password:
            continue
        keys = [config.get(key) for key in _EXPORTER_KEYS.get(str(provider), ())]
        if not any(key is not None and (isinstance(key, Mapping) or str(key).strip()) for key in keys):
            raise _refusal(project, f"{where}.config.{name}", "gives an address, but not the key that is sent there")


def _leads_away(path: str, value: Any) -> bool:
    """Whether an option says where something goes. A local socket is none: no repository can bring one."""
    if isinstance(value, str) and value.startswith("unix://"):
        return False
    if _ADDRESS.search(path.rpartition(".")[2]):
        return True
    return any(_leads_away(name, inner) for name, inner in _nested(value))


def _nested(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        yield from ((str(name), inner) for name, inner in value.items())
    elif isinstance(value, list | tuple):
        yield from (("", inner) for inner in value)


def _inside(path: str, folder: Path) -> bool:
    return (folder / Path(path).expanduser()).resolve().is_relative_to(folder.resolve())


def _at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values.get(name) if isinstance(values, Mapping) else None
    return values


def _refusal(project: str, option: str, why: str) -> RunraError:
    return RunraError(
        "INVALID_CONFIG",
        f"{project}: {option} {why}. A project's file may not do that by itself: if you trust this folder, set "
        f"{VARIABLE}=1, or name it in {LIST!r} in {config_path()}; else remove the option",
        details={"field": option, "path": project},
    )
