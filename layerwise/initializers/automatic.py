r"""One scheme for any graph: every leaf scaled where the theory first meets it.

The interpreter (`layerwise.theory`) walks the model's program with the moments of the
inputs that were given. At each weight operation it reads off what second moment the
operation would make, scales the leaf so that it makes the one wanted, and goes on with
the scale in place: padding, pooling that overlaps, correlations between pixels, sums
and normalizations before it are all accounted for, as far as there are rules. All of it
is in logarithms, so that no depth overflows.

``kernel_forward``
    The result of every weight operation has second moment 1.
``kernel_backward``
    The cotangent that every operation hands to its operand has second moment 1, with
    unit cotangents at the outputs: the sweep runs from there.
``balanced``
    With one scale per layer, both directions are flat only in networks without strides
    and pooling. If forward is kept, the log second moment of the cotangents is some
    profile D; here forward is given the profile D/2, and backward is left with the
    other half: the least that the worse of the two can be. In a chain of ReLU layers
    the variances are the geometric means of those of the two one-sided schemes. A
    trunk of sums cannot follow every profile: of what was tried, ``kernel_forward``
    included, it is the one whose worse direction is predicted to spread least.
``position_resolved_forward``, ``position_resolved_backward``
    The same with inputs taken for independent entries: only shapes matter. This is ASV
    (`layerwise.initializers.asv`) with the exact map over positions in place of the
    layer's average number of connections, overlap of pooling windows included.

Targets on residual branches. A sum of L branches of second moment 1 grows by a factor
of L, so that the last operation on each residual branch is given 1/L forward, and the
first operation on it 1/L backward, where L counts the residual sums of the whole model,
loops unrolled: the trunk then gains at most 1 in all, whatever its depth.

What it does not understand (a weight made of several leaves, an operation without a
sound rule) is left to the model's own init, and listed in `Law.left_alone`. A leaf that
several operations share is scaled at the first of them.

References:
    [Henmi2020] for the principle; [Taki2017] for 1/L; [Bingham2023] for walking a
    model's layers with moments.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np

from layerwise.initializers import law as laws
from layerwise.initializers.registry import (
    FEATURES,
    Assignment,
    Problem,
    Scheme,
    register,
)
from layerwise.initializers.weights import weights
from layerwise.theory import examples, law as theory
from layerwise.theory.engine import Engine
from layerwise.theory.first_use import scale_at_first_use, scale_cotangents
from layerwise.tracing import TracedModel
from layerwise.tracing.blocks import blocks, residual_blocks
from layerwise.tracing.model import leaf_name
from layerwise.tracing.unroll import unroll


_MAX_SWEEPS = 4
_SETTLED = 1e-2  # log of a standard deviation
_ITERATION = re.compile(r"\[\d+\]")  # as paths of layers in loops have it

Scales = dict[str, float]


def _assign(solve: Callable[["_Sweep"], Scales], problem: Problem) -> Assignment:
    """Returns the variances that `solve` finds; leaves without any are left alone."""
    left: dict[str, str] = {}
    while True:
        sweep = _Sweep.of(problem, left)
        scales = solve(sweep)
        missing = [
            n
            for n, leaf in sweep.law.leaves.items()
            if n in sweep.starts and n not in scales and leaf.value is None
        ]
        if not missing:
            break
        left |= dict.fromkeys(missing, "no rule of the theory reaches it")
    variances: dict[str, float] = {}
    for w in weights(problem.traced):
        if w.leaf in sweep.starts:
            factor = math.exp(2.0 * scales[w.leaf])
            variances.setdefault(w.path, sweep.starts[w.leaf] * factor)
    return Assignment(variances, left_alone=left)


@dataclasses.dataclass(frozen=True, eq=False)
class _Sweep:
    """A model with weights of a known start, to be scaled.

    Attributes:
        problem: The model.
        traced: Its program, loops written out.
        starts: Leaf name -> the variance that it starts from.
        law: The law of all leaves.
        looked_up: Leaves whose rows are read before anything multiplies by them.
    """

    problem: Problem
    traced: TracedModel
    starts: Mapping[str, float]
    law: theory.Law
    looked_up: frozenset[str]

    @classmethod
    def of(cls, problem: Problem, left: Mapping[str, str]) -> "_Sweep":
        base, looked_up, seen = {}, set(), set()
        for w in weights(problem.traced):
            if w.lookup and w.leaf is not None and w.leaf not in seen:
                looked_up.add(w.leaf)
            if w.leaf is not None and w.leaf not in left:
                base.setdefault(w.path, 1.0 / w.fan_in)
            seen.add(w.leaf)
        drawn = laws.make(_UNIT, problem, Assignment(base, left_alone=left), "normal")
        starts = {n: float(s) ** 2 for n, s in drawn.stddev.items()}
        flat = unroll(problem.traced, problem.inputs).traced
        law = _moments(problem, drawn)
        return cls(problem, flat, starts, law, frozenset(looked_up))

    def forward(
        self, independent: bool, profile: Mapping[str, float] | None = None
    ) -> Scales:
        """Returns the scales that keep the signal, or give it a profile.

        Args:
            independent: Take inputs for independent entries.
            profile: Layer path -> what is added to the log of its target.
        """
        constant = self._target(last=True)

        def target(path: str, log: float) -> float:
            return constant(path, log) + (profile or {}).get(path, 0.0)

        found = scale_at_first_use(
            self.traced,
            self.law,
            self.problem.inputs,
            target,
            independent=independent,
        )
        return found | dict.fromkeys(self.looked_up & set(self.starts), 0.0)

    def backward(self, scales: Scales, independent: bool) -> Scales:
        """Returns what keeps the cotangents of the network that `scales` makes."""
        target = self._target(last=False)
        found = scale_cotangents(
            self.traced,
            _scaled(self.law, scales),
            self.problem.inputs,
            target,
            independent=independent,
        )
        return {n: found.get(n, 0.0) for n in scales}

    def cotangents(self, scales: Scales) -> tuple[float, dict[str, float], float]:
        """Returns the log second moments of cotangents at the input and by layer.

        And their spread over all layers, the log of the largest ratio. What is returned
        for a layer within a residual block is the cotangent of the block's sum;
        for a layer which makes an output, where the cotangent is given, it is the one
        of the layer before: its own scale moves all others alike.
        """
        traced = self.traced
        first = traced.layers[0].operand if traced.layers else -1
        at = {y.path: y.z for y in traced.layers}
        every = {first, *at.values()}
        for block in residual_blocks(blocks(traced))[::-1]:  # inner blocks come last
            at |= {
                y.path: block.exit for branch in block.branches for y in branch.layers
            }
        cuts = frozenset([*every, *at.values()]) & set(traced.graph.avals)
        law, inputs = _scaled(self.law, scales), self.problem.inputs
        whole, engines = examples.run(
            functools.partial(Engine, traced, law, inputs, cuts), examples.both_ways
        )

        def log(value: int) -> float:
            got = examples.moments_of(whole, engines, value, "backward")
            return math.nan if got is None else got.log

        start = log(first)
        start = before = start if math.isfinite(start) else 0.0
        found = {}
        for path, value in at.items():
            own = log(value) if value in cuts - set(traced.graph.outputs) else before
            found[path] = before = own if math.isfinite(own) else before
        inner = (every & cuts) - set(traced.graph.outputs)
        logs = [x for x in map(log, inner) if math.isfinite(x)]
        return start, found, max(logs, default=0.0) - min(logs, default=0.0)

    def spread(self, profile: Mapping[str, float]) -> float:
        """Returns the log of the largest ratio of two layers' targets."""
        target = self._target(last=True)
        logs = [
            target(y.path, 0.0) + profile.get(y.path, 0.0) for y in self.traced.layers
        ]
        return max(logs, default=0.0) - min(logs, default=0.0)

    def _target(self, last: bool) -> Callable[[str, float], float]:
        traced = self.problem.traced
        found = residual_blocks(blocks(traced))
        count = sum(b.repeats for b in found)
        ends = {
            branch.layers[-1 if last else 0].path
            for block in found
            for branch in block.residuals
        }
        kept = {w.path for w in weights(traced) if w.leaf in self.looked_up}

        def target(path: str, log: float) -> float:
            name = _ITERATION.sub("", path)
            if name in kept:
                return log
            return -math.log(count) if name in ends else 0.0

        return target


def _moments(problem: Problem, drawn: laws.Law) -> theory.Law:
    """Returns the law of a network as the theory wants it."""
    model = problem.traced.model
    if model.init is not None:
        own = theory.of_init(model.init, problem.inputs) if drawn.others else None
    else:
        own = theory.of_params(model.params) if drawn.others else None
    flat = jax.tree_util.tree_flatten_with_path(problem.abstract)[0]
    leaves = {}
    for path, like in flat:
        name = leaf_name(path)
        if name in drawn.stddev:
            leaves[name] = theory.Leaf(float(drawn.stddev[name]) ** 2, 0.0, None)
        elif name in drawn.constants:
            c = drawn.constants[name]
            leaves[name] = theory.Leaf(c**2, c, np.full(like.shape, c))
        else:
            assert own is not None
            leaves[name] = own.leaves[name]
    return theory.Law(leaves, drawn)


def _scaled(law: theory.Law, scales: Scales) -> theory.Law:
    """Returns the law with leaves multiplied by the exponentials of `scales`."""
    leaves = dict(law.leaves)
    for name, log in scales.items():
        second = leaves[name].second * math.exp(2.0 * log)
        leaves[name] = dataclasses.replace(leaves[name], second=second)

    def draw(key: jax.Array) -> object:
        flat, tree = jax.tree_util.tree_flatten_with_path(law.draw(key))
        return jax.tree.unflatten(
            tree, [x * math.exp(scales.get(leaf_name(p), 0.0)) for p, x in flat]
        )

    return theory.Law(leaves, draw)


def _forward(independent: bool) -> Callable[[_Sweep], Scales]:
    return lambda sweep: sweep.forward(independent)


def _backward(independent: bool) -> Callable[[_Sweep], Scales]:
    def solve(sweep: _Sweep) -> Scales:
        scales = sweep.forward(independent)
        for _ in range(_MAX_SWEEPS):
            step = sweep.backward(scales, independent)
            scales = {n: log + step[n] for n, log in scales.items()}
            if max(map(abs, step.values()), default=0.0) < _SETTLED:
                break
        return scales

    return solve


def _balanced(sweep: _Sweep) -> Scales:
    profile: dict[str, float] = {}
    scales = sweep.forward(False)
    tried: list[tuple[float, Scales]] = []
    for step in range(3):  # the second step is for slopes that depend on the scale
        start, back, spread = sweep.cotangents(scales)
        tried.append((max(spread, sweep.spread(profile)), scales))
        if step == 2:
            break
        # What goes back if forward is flat: B = D - f, with f the forward profile.
        drift = {path: x + profile.get(path, 0.0) for path, x in back.items()}
        profile = {path: 0.5 * (x - start) for path, x in drift.items()}
        scales = sweep.forward(False, profile)
    return min(tried, key=lambda pair: pair[0])[1]


def _register(
    name: str,
    solve: Callable[[_Sweep], Scales],
    needs: str,
    preserves: str,
    supports: tuple[str, ...] = FEATURES,
) -> Scheme:
    return register(
        Scheme(
            name,
            lambda problem: _assign(solve, problem),
            needs=needs,
            preserves=preserves,
            supports=supports,
            source="[Henmi2020], [Taki2017]",
        )
    )


_UNIT = Scheme("unit", lambda p: Assignment({}), "", "", (), "")

_register("kernel_forward", _forward(False), "the graph, inputs", "E[u^2] forward")
_register(
    "kernel_backward", _backward(False), "the graph, inputs", "the cotangent backward"
)
_register(
    "balanced", _balanced, "the graph, inputs", "the geometric mean of both directions"
)
_register(
    "position_resolved_forward",
    _forward(True),
    "the graph",
    "E[u^2] forward, white inputs",
)
_register(
    "position_resolved_backward",
    _backward(True),
    "the graph",
    "the cotangent backward, white inputs",
)
