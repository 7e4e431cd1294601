"""How far the rules go through a model, and why no farther."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from layerwise.theory.context import Node
from layerwise.theory.registry import NoSoundRule


class Reach(NamedTuple):
    """How far the rules go; what is beyond is sampled.

    Attributes:
        forward: First node's result that no rule makes.
        backward: Latest value whose cotangent no rule makes.
        why: Why not.
    """

    forward: int | float = np.inf
    backward: int | float = -1
    why: str = ""

    def least(self, others: Sequence["Reach"]) -> "Reach":
        """Returns how far this and all others go."""
        found = self
        for other in others:
            forward = min(found.forward, other.forward)
            backward = max(found.backward, other.backward)
            if (forward, backward) != found[:2]:
                found = Reach(forward, backward, f"{other.why}, for some examples")
        return found


EVERYTHING = Reach()


FAILED = "its rule failed"


def why(error: Exception) -> str:
    """Returns why a node is sampled: a rule that fails takes no other number away."""
    if isinstance(error, NoSoundRule):
        return str(error)
    first = str(error).strip().partition("\n")[0]
    return f"{FAILED}: {type(error).__name__}: {first}"


def without_rule(node: Node) -> str:
    """Says that a node has no rule, and what to type where one rule would do."""
    if node.name == "opaque":
        return "no rule for what these equations make together"
    return f'no rule; @layerwise.rule("{node.name}") adds one'
