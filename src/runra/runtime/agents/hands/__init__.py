"""An agent's hands in a sandbox: the contract's six tools, and tools of the caller's own beside them."""

from runra.runtime.agents.hands.own import own_tools
from runra.runtime.agents.hands.tool import Tool, ToolFailed, ToolOutput, cut
from runra.runtime.agents.hands.tools import SandboxTools

__all__ = ["SandboxTools", "Tool", "ToolFailed", "ToolOutput", "cut", "own_tools"]
