"""The fields of a sandbox as attributes, the same in both forms."""

from __future__ import annotations

from typing import Any

from runra.contract import SandboxInfo, SandboxState, TerminationReason
from runra.sdk.types import NetworkPolicy, ResourceLimits


class SandboxFields:
    """What the server last said of a sandbox. Calls on it keep this fresh; `refresh()` asks anew."""

    _info: SandboxInfo

    @property
    def info(self) -> SandboxInfo:
        """Everything at once, as the contract's model."""
        return self._info

    @property
    def id(self) -> str:
        return self._info.id

    @property
    def state(self) -> SandboxState:
        """`creating`, `running`, `paused` or `terminated`, when the server was last asked."""
        return self._info.state

    @property
    def image(self) -> str:
        return self._info.image

    @property
    def resources(self) -> ResourceLimits:
        return ResourceLimits.model_validate(self._info.resources)

    @property
    def env(self) -> dict[str, str]:
        return self._info.env

    @property
    def workdir(self) -> str:
        return self._info.workdir

    @property
    def timeout_ms(self) -> int:
        """Longest time running, in ms; then the sandbox is terminated."""
        return self._info.timeout_ms

    @property
    def idle_timeout_ms(self) -> int:
        """Time without use after which the sandbox is paused, in ms."""
        return self._info.idle_timeout_ms

    @property
    def metadata(self) -> dict[str, str]:
        return self._info.metadata

    @property
    def network(self) -> NetworkPolicy:
        return NetworkPolicy.model_validate(self._info.network)

    @property
    def auto_resume(self) -> bool:
        return self._info.auto_resume

    @property
    def isolation(self) -> str:
        return self._info.isolation

    @property
    def enforced(self) -> dict[str, bool]:
        """Of each limit, whether this server holds it."""
        return self._info.enforced

    @property
    def volumes(self) -> list[dict[str, Any]]:
        return self._info.volumes

    @property
    def organization_id(self) -> str:
        return self._info.organization_id

    @property
    def created_at(self) -> str:
        """ISO 8601, UTC; the same for the other times, which are None until they happen."""
        return self._info.created_at

    @property
    def started_at(self) -> str | None:
        return self._info.started_at

    @property
    def paused_at(self) -> str | None:
        return self._info.paused_at

    @property
    def terminated_at(self) -> str | None:
        return self._info.terminated_at

    @property
    def termination_reason(self) -> TerminationReason | None:
        """`user`, `timeout`, `oom`, `disk`, `node_lost`, `image` or `error`; None while it lives."""
        return self._info.termination_reason

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.state} image={self.image!r}>"
