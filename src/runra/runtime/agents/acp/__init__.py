"""The agent `custom` as any agent that speaks ACP, the Agent Client Protocol, over stdio."""

from runra.runtime.agents.acp.agent import AcpAgent

__all__ = ["AcpAgent"]
