"""Scales for the weights of a model, one interpretation pass.

Every leaf is scaled where it is first used, so that the second moment of what its
operation makes is the one asked for; later layers are predicted with it as it then is.
All of it in logarithms: no scale on the way can overflow.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from layerwise.theory import examples
from layerwise.theory.context import Node
from layerwise.theory.engine import Direction, Engine
from layerwise.theory.law import Law
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
    make = _maker(traced, law, inputs, independent, draws, "forward")
    return _by_example(make, target)


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
    make = _maker(traced, law, inputs, independent, draws, "backward")
    return _by_example(make, target)


def _maker(
    traced: TracedModel,
    law: Law,
    inputs: Sequence[Any],
    independent: bool,
    draws: int,
    direction: Direction,
) -> Callable[..., Engine]:
    def make(**changes: Any) -> Engine:
        given: dict[str, Any] = {"draws": draws, "independent": independent, **changes}
        cuts = frozenset(y.root for y in traced.layers)
        return Engine(traced, law, inputs, cuts, scaled=direction, **given)

    return make


def _by_example(make: Callable[..., Engine], target: Target) -> dict[str, float]:
    """Returns the scales on the average of all examples, told apart where need be."""
    sweep = functools.partial(_sweep, target)
    whole, engines = examples.run(make, sweep)
    if engines == [whole] or not any(e.reasons for e in engines):
        return engines[0].scales
    beyond = make(within=whole.within)
    beyond.scales.update(engines[0].scales)
    sweep([beyond])
    return beyond.scales


def _sweep(target: Target, engines: Sequence[Engine]) -> None:
    """Runs engines in step, and scales every leaf where it is first used."""
    if engines[0].scaled == "forward":
        for nodes in zip(*(e.forward() for e in engines), strict=False):
            if _is_weight_operation(engines[0], nodes[0]):
                _rescale(engines, nodes[0], nodes[0].output, target)
        return
    for e in engines:
        collections.deque(e.forward(), maxlen=0)
    for nodes in zip(*(e.backward() for e in engines), strict=False):
        node = nodes[0]
        if node.output in engines[0].sampled or node.output not in engines[0].total:
            continue
        if engines[0].sharing.has_weights(node):
            for v in node.inputs:
                if v not in engines[0].fixed and v in engines[0].cotangents:
                    _rescale(engines, node, v, target)


def _is_weight_operation(engine: Engine, node: Node) -> bool:
    if node.output not in engine.sampled:
        return engine.sharing.has_weights(node)
    kind = engine.traced.flow.kind.get(node.output)
    return kind == "weight" and len(node.inputs) == 1


def _rescale(
    engines: Sequence[Engine],
    node: Node,
    value: int,
    target: Target,
) -> None:
    """Scales the leaf of an operation, if this is its first use, and what it made."""
    engine = engines[0]
    traced, law, found = engine.traced, engine.ctx.law, engine.scales
    (weight,) = [a for a in node.equations[0].inputs if not traced.flow.is_signal(a)]
    leaf = engine.ctx.leaf(weight)
    if leaf is None or law.leaves[leaf].value is not None:
        return
    forward = engine.scaled == "forward"
    states = [e.known[value] if forward else e.cotangents[value][-1] for e in engines]
    if leaf not in found:
        log = examples.average(states).log
        if not np.isfinite(log):
            return
        paths = {y.root: y.path for y in traced.layers}
        path = paths.get(node.output, leaf.rpartition("/")[0])
        found[leaf] = 0.5 * (target(path, log) - log)
    shift = 2.0 * found[leaf]
    for e, state in zip(engines, states, strict=True):
        scaled = state.map(lambda f: f.replace(log_scale=f.log_scale + shift))
        if forward:
            e.known[value] = scaled
        else:
            e.cotangents[value][-1] = scaled
