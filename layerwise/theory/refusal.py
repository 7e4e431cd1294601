"""What is raised where a rule's assumptions do not hold."""

from collections.abc import Sequence

import numpy as np

from layerwise.errors import LayerwiseError
from layerwise.theory.state import State


class NoSoundRule(LayerwiseError, NotImplementedError):
    """A node outside of what its rule is right for; the message says why.

    Attributes:
        forward_only: Whether the rule is right for the cotangent all the same.
    """

    forward_only = False


class Uncertain(NoSoundRule):
    """A result that may be far off by a rule that is right for its cotangent."""

    forward_only = True


def check_certain(name: str, state: State, operands: Sequence[State]) -> None:
    """Raises `Uncertain` where a sum over positions is what cancelling leaves.

    A mean over positions whose mean is zero is made of small pair moments alone, and
    their errors are relative to single positions.
    """
    own = state.tolerance - max(s.tolerance for s in operands)
    if name == "reduce_sum" and own > UNCERTAIN:
        raise Uncertain(f"a sum that cancels, off by a factor of {np.exp(own):.1f}")


UNCERTAIN = 0.65
"""Stated error of a logarithm beyond which the result of a sum is sampled."""


def check_numbers(states: Sequence[State | None], operands: Sequence[State]) -> None:
    """Raises if something is not a number: `NoSoundRule` where it is too large."""
    for state in (s for s in states if s is not None):
        for _, field in state.parts:
            if np.isnan(np.sum(field.second) + field.log_scale + state.tolerance):
                largest = max(s.moments()[1] for s in operands)
                if largest > LARGE:
                    raise NoSoundRule(
                        f"a second moment of e^{largest:.0f}, overflowing"
                    )
                raise ArithmeticError("a moment that is not a number")


LARGE = 80.0
"""Logarithm of second moments whose fourth powers are beyond float64."""
