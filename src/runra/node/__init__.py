"""This host's sandboxes: their life, their walls, their limits and the link to the agent inside."""

from runra.node.node import Node
from runra.node.sandbox import Sandbox
from runra.node.settings import NodeSettings

__all__ = ["Node", "NodeSettings", "Sandbox"]
