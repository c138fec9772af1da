"""Agents: what works on a prompt in a sandbox. One module each, fulfilling `AgentAdapter`."""
