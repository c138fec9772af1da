"""The model gateway: agents reach models with a run's token; the real key, the count and the budget stay outside."""

from runra.runtime.gateway.features import unsupported
from runra.runtime.gateway.http import GatewayServer
from runra.runtime.gateway.runs import RunLimits, Totals
from runra.runtime.gateway.service import Admission, Gateway

__all__ = ["Admission", "Gateway", "GatewayServer", "RunLimits", "Totals", "unsupported"]
