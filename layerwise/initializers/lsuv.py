"""LSUV: scales read off a batch, layer after layer, in one pass of the program.

The original runs the network once for every layer: run up to the layer, measure,
divide its weights, go on. An operation is linear in its weight, so that all of it fits
into one forward pass: what the operation made is divided at once, and the layers behind
it see it as it will be. One program, compiled once, traceable: it can be part of a
draw. Layers in loops are scaled iteration by iteration.

Second moments on this batch are then 1 to rounding, for any model at all, whatever the
theory knows of it: the fallback and the baseline of the other schemes. What it does not
do is look back: the cotangents are what they are.

References:
    [Mishkin2016]; it begins with orthogonal weights, and so does this.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from layerwise import _jax
from layerwise.initializers.registry import (
    FEATURES,
    Assignment,
    Problem,
    Scheme,
    register,
)
from layerwise.initializers.weights import Weight, weights
from layerwise.tracing import Loop, TracedModel
from layerwise.tracing.graph import Equation, evaluate
from layerwise.tracing.model import leaf_name
from layerwise.types import PyTree


Scales = dict[str, jax.Array]


def unit_scales(
    traced: TracedModel, params: PyTree, inputs: Sequence[Any]
) -> dict[str, jax.Array]:
    """Returns what each weight is to be multiplied by for E[u^2] = 1 on a batch.

    Exact to float32's rounding, on these inputs, for operations before their bias. A
    weight that several operations share is scaled at the first; weights that are no
    rearrangement of one leaf are left out.

    Args:
        traced: The model.
        params: Its parameters.
        inputs: The batch.

    Returns:
        Leaf name -> scale: a scalar, or one for each iteration of the loop around it.
    """
    run = _Run({w.path: w for w in weights(traced) if not w.lookup})
    start = {
        w.leaf: jnp.ones(()) for w in weights(traced) if w.lookup and w.leaf is not None
    }
    args = jax.tree.leaves((params, tuple(inputs)))
    _, scales = run.part(traced, args, start)
    return {n: s for n, s in scales.items() if n not in start}


class _Run:
    """Evaluates a program; each weight operation's result is made unit on the way.

    Args:
        operations: Layer path -> its weight.
    """

    def __init__(self, operations: Mapping[str, Weight]) -> None:
        self.operations = operations

    def part(
        self, part: TracedModel | Loop, args: Sequence[Any], scales: Scales
    ) -> tuple[list[Any], Scales]:
        """Returns the outputs of a graph, and the scales known after it."""
        known = dict(scales)
        layers = {y.root: self.operations[y.path] for y in part.layers}
        loops = {loop.equation.outputs[0]: loop for loop in part.loops}

        def override(equation: Equation, operands: list[Any]) -> list[Any] | None:
            first = equation.outputs[0] if equation.outputs else -1
            if first in loops:
                outs, inner = self.scan(loops[first], operands, known)
                known.update(inner)
                return outs
            weight = layers.get(first)
            if weight is None or weight.leaf is None or not weight.linear:
                return None
            (out,) = _jax.bind(equation.eqn, operands)
            scale = _inverse_root_mean_square(out)
            if weight.leaf in known:  # a carried 0 says: not used yet
                before = known[weight.leaf]
                scale = jnp.where(before == 0.0, scale, before)
            known[weight.leaf] = scale
            return [(out * known[weight.leaf]).astype(out.dtype)]

        outs = evaluate(part.graph, args, override=override)
        return outs, known

    def scan(
        self, loop: Loop, operands: list[Any], scales: Scales
    ) -> tuple[list[Any], Scales]:
        """Runs a scan: weights that it slices get a scale for each iteration.

        Those that all iterations share have theirs carried from the first one on.
        """
        p = loop.equation.params
        first, carries = _jax.scan_counts(loop.equation.eqn)
        after = first + carries
        flow = loop.flow
        sliced = frozenset().union(*map(flow.leaves_of, loop.graph.inputs[after:]))
        held = frozenset().union(*map(flow.leaves_of, loop.graph.inputs[:after]))
        shared = {
            w.leaf
            for y in loop.layers
            if (w := self.operations[y.path]).leaf in held and w.linear
        }
        begun = {str(n): scales.get(str(n), jnp.zeros(())) for n in shared}

        def body(state: Any, slices: Any) -> tuple[Any, Any]:
            carry, kept = state
            args = [*operands[:first], *carry, *slices]
            outs, own = self.part(loop, args, scales | kept)
            rows = {n: s for n, s in own.items() if n in sliced and n not in scales}
            kept = {n: own[n] for n in kept}
            return (outs[:carries], kept), (outs[carries:], rows)

        (carry, kept), (ys, rows) = jax.lax.scan(
            body,
            (operands[first:after], begun),
            operands[after:],
            length=p["length"],
            reverse=p["reverse"],
            unroll=p["unroll"],
        )
        return [*carry, *ys], rows | kept


def _inverse_root_mean_square(x: jax.Array) -> jax.Array:
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    top = jnp.max(jnp.abs(x))
    top = jnp.where((top > 0.0) & jnp.isfinite(top), top, 1.0)
    mean = jnp.mean(jnp.square(x / top))
    return jnp.where(mean > 0.0, jax.lax.rsqrt(mean) / top, 1.0)


def _solve(problem: Problem) -> Assignment:
    traced, inputs = problem.traced, problem.inputs
    variances: dict[str, float] = {}
    left = {}
    for w in weights(traced):
        if w.leaf is not None and not w.linear:
            left[w.leaf] = "its weight is no multiple of it"
        variances.setdefault(w.path, 1.0 if w.lookup else 1.0 / w.fan_in)

    def adjust(params: PyTree) -> PyTree:
        scales = unit_scales(traced, params, inputs)
        flat, tree = jax.tree_util.tree_flatten_with_path(params)
        out = []
        for path, x in flat:
            scale = scales.get(leaf_name(path))
            if scale is not None:
                lead = (*scale.shape, *(1,) * (x.ndim - scale.ndim))
                x = (x * scale.reshape(lead)).astype(x.dtype)
            out.append(x)
        return jax.tree.unflatten(tree, out)

    return Assignment(variances, left_alone=left, adjust=adjust, exact=False)


register(
    Scheme(
        "lsuv",
        _solve,
        needs="a batch",
        preserves="E[u^2] forward, on that batch",
        supports=FEATURES,
        source="[Mishkin2016]",
        default="orthogonal",
    )
)
