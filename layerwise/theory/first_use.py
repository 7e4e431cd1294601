"""Scales for the weights of a model, one interpretation pass.

Every leaf is scaled where it is first used, so that the second moment of what its
operation makes is the one asked for; later layers are predicted with it as it then is.
All of it in logarithms: no scale on the way can overflow.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from layerwise.theory.context import Node
from layerwise.theory.engine import Engine
from layerwise.theory.law import Law
from layerwise.theory.state import State
from layerwise.tracing import TracedModel


Target = Callable[[str, float], float]
"""(layer path, log of the second moment as it is) -> log of the one wanted."""


def scale_at_first_use(
    traced: TracedModel,
    law: Law,
    inputs: Sequence[Any],
    target: Target,
    *,
    independent: bool = False,
    draws: int = 48,
) -> dict[str, float]:
    """Returns the logarithm of the factor that each weight leaf is multiplied by.

    Second moments are of the weight operation's own result, before a bias is added.
    A leaf that several operations share (tied, run by a loop) is scaled at the first.
    A weight that is not a rearrangement of one leaf (weight normalization) has no scale
    and is left out, and so is a leaf of the same value in every network, and one whose
    operation makes zero.

    Args:
        traced: The model.
        law: The law of its parameters as they are.
        inputs: The data inputs.
        target: What second moment is wanted of each operation.
        independent: Take inputs for independent zero-mean entries.
        draws: Networks to run where an equation has to be sampled.

    Example:
        >>> from layerwise.theory import law as laws
        >>> from layerwise.tracing import as_function, trace
        >>> p, x = {"w": 2.0 * jnp.eye(4)}, jnp.ones((1, 4))
        >>> traced = trace(as_function(lambda p, x: x @ p["w"]), p, (x,))
        >>> found = scale_at_first_use(traced, laws.of_params(p), (x,), lambda *_: 0.0)
        >>> f"{found['w']:.4f}"  # 4 weights of second moment 1 make 4: halve them
        '-0.6931'
    """
    found: dict[str, float] = {}
    engine = Engine(
        traced,
        law,
        inputs,
        frozenset(y.root for y in traced.layers),
        independent=independent,
        draws=draws,
        on_weights=lambda node, state: _rescale(engine, found, target, node, state),
        log_scale=found,
    )
    engine.forward()
    return found


def scale_cotangents(
    traced: TracedModel,
    law: Law,
    inputs: Sequence[Any],
    target: Target,
    *,
    independent: bool = False,
    draws: int = 48,
) -> dict[str, float]:
    """Returns the same for the way back, first used by the sweep from the outputs.

    What is given its second moment is the cotangent that an operation hands to its
    operand, with cotangents of unit variance at the outputs. The forward sweep is that
    of the law as it is: exact where slopes do not depend on the scale of the signal
    (ReLU), else one step of a fixed-point iteration.

    Arguments are those of `scale_at_first_use`.
    """
    found: dict[str, float] = {}
    engine = Engine(
        traced,
        law,
        inputs,
        frozenset(y.root for y in traced.layers),
        independent=independent,
        draws=draws,
        on_cotangent=lambda node, state: _rescale(engine, found, target, node, state),
    )
    engine.run()
    return found


def _rescale(
    engine: Engine, found: dict[str, float], target: Target, node: Node, state: State
) -> State:
    """Scales the leaf of an operation, if this is its first use, and the state."""
    traced, law = engine.traced, engine.ctx.law
    (weight,) = [a for a in node.equations[0].inputs if not traced.flow.is_signal(a)]
    leaf = engine.ctx.leaf(weight)
    if leaf is None or law.leaves[leaf].value is not None:
        return state
    if leaf not in found:
        log = state.moments()[1]
        if not np.isfinite(log):
            return state
        paths = {y.root: y.path for y in traced.layers}
        path = paths.get(node.output, leaf.rpartition("/")[0])
        found[leaf] = 0.5 * (target(path, log) - log)
    shift = 2.0 * found[leaf]
    return state.map(lambda f: f.replace(log_scale=f.log_scale + shift))
