"""What an operator says of walls and limits on the command line reaches the node."""

from __future__ import annotations

import pytest
import typer

from runra.cli.policy import node_policy
from runra.node.enforcement import CURES


def test_words_become_settings() -> None:
    assert node_policy(None, None, None, None) == {}
    assert node_policy("gvisor", "gvisor,bubblewrap", None, None) == {
        "isolation": "gvisor",
        "allowed_isolation": frozenset({"gvisor", "bubblewrap"}),
    }
    assert node_policy(None, None, "gvisor", None) == {"allowed_isolation": frozenset({"gvisor"})}
    assert node_policy(None, None, None, "all") == {"allow_unenforced": frozenset(CURES)}
    assert node_policy(None, None, None, "cpu, disk") == {"allow_unenforced": frozenset({"cpu", "disk"})}


@pytest.mark.parametrize(
    "words", [("bubblewrap", None, "gvisor", None), (None, "gvisor", "gvisor", None), (None, "a,,b", None, None)]
)
def test_words_that_contradict_each_other(words: tuple[str | None, ...]) -> None:
    with pytest.raises(typer.BadParameter):
        node_policy(*words)
