"""Our own agent: any model, the six tools on the sandbox, and the caller's own tools."""

from runra.runtime.agents.loop.agent import LoopAgent, LoopOptions

__all__ = ["LoopAgent", "LoopOptions"]
