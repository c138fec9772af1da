"""What a call was given, put together with the options in force and checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from runra.errors import RunraError
from runra.runtime.config import Resolved, is_secret
from runra.runtime.types import StartParams
from runra.sdk.types import SandboxConfig, checked, merged

if TYPE_CHECKING:
    from runra.runtime.exporters import Pipeline

#: How long a sandbox made for a run lives when nothing bounds the run, in ms.
RUN_MS: Final = 3_600_000
#: What it lives longer than a run that is bounded, and the longest the contract allows.
_SPARE_MS: Final = 300_000
_LONGEST_MS: Final = 86_400_000


def with_defaults(values: Mapping[str, Any], given: Mapping[str, Any]) -> SandboxConfig:
    """A create's options over `sandbox.defaults`; limits and environment one by one. Raises INVALID_REQUEST."""
    defaults = values.get("sandbox", {}).get("defaults", {})
    wanted = {**defaults, **given}
    if "resources" in defaults and "resources" in given:
        wanted["resources"] = {**defaults["resources"], **merged(given["resources"], {}, "resources")}
    if "env" in defaults and isinstance(given.get("env"), Mapping):
        wanted["env"] = {**defaults["env"], **given["env"]}
    if "image" not in wanted:
        raise RunraError(
            "INVALID_REQUEST",
            "image: is required; give one here, or a default in sandbox.defaults.image (RUNRA_DEFAULT_IMAGE)",
            details={"field": "image"},
        )
    return checked(SandboxConfig, wanted)


def for_a_run(
    values: Mapping[str, Any], given: Mapping[str, Any] | None, agent: Any, timeout_ms: int | None, *, lifetimes: bool
) -> dict[str, Any]:
    """The options of a sandbox that is made for a run. Where nothing else is said, it is of the agent's own image, and
    lives longer than the run may take: a sandbox's usual five minutes would end most of them."""
    defaults = values.get("sandbox", {}).get("defaults", {})
    wanted = dict(given or {})
    image = getattr(agent, "image", "")
    if image and "image" not in {**defaults, **wanted}:
        wanted["image"] = image
    if lifetimes and not {"timeout_ms", "timeoutMs"} & {*defaults, *wanted}:
        wanted["timeout_ms"] = min(RUN_MS if timeout_ms is None else timeout_ms + _SPARE_MS, _LONGEST_MS)
    return wanted


def start_params(
    prompt: str | StartParams | Mapping[str, Any],
    sandbox_id: str | None,
    sandbox_options: SandboxConfig | Mapping[str, Any] | None,
    session_id: str | None,
    diff: bool | None,
) -> StartParams:
    """What `start` was given, as one model. Raises INVALID_REQUEST."""
    given = prompt if not isinstance(prompt, str) else {"prompt": prompt}
    options = None if sandbox_options is None else merged(sandbox_options, {}, "sandbox_options")
    keywords = {"sandbox_id": sandbox_id, "sandbox_options": options, "session_id": session_id, "diff": diff}
    params = checked(StartParams, merged(given, keywords, "start"))
    if params.sandbox_id is not None and params.sandbox_options is not None:
        raise RunraError(
            "INVALID_REQUEST",
            "give either sandbox_id or sandbox_options, not both",
            details={"field": "sandbox_options"},
        )
    if params.session_id is not None and params.sandbox_id is None:
        raise RunraError(
            "INVALID_REQUEST",
            "session_id: a conversation lives in its sandbox; give that one's sandbox_id as well",
            details={"field": "session_id"},
        )
    return params


def exporters(resolved: Resolved) -> Pipeline | None:
    """The exporters' pipeline, checked and not yet started; None when none is configured."""
    wanted = resolved.options.observability
    if wanted is None or not wanted.exporters:
        return None
    # Here rather than above: without exporters none of them is loaded.
    from runra.runtime.exporters import pipeline

    return pipeline(wanted, _secrets(resolved.values))


def _secrets(values: Any, secret: bool = False) -> list[str]:
    """Every value among the options whose name says it is secret: none of them may leave through an exporter."""
    if isinstance(values, Mapping):
        return [found for name, value in values.items() for found in _secrets(value, secret or is_secret(str(name)))]
    if isinstance(values, list | tuple):
        return [found for value in values for found in _secrets(value, secret)]
    return [values] if secret and isinstance(values, str) and values else []
