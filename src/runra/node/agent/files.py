"""File work in the sandbox."""
class AgentFiles:
    def __init__(self, link): self._link = link
