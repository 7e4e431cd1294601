r"""Schemes for residual networks: what a branch must not add to the trunk.

A sum of L branches grows with L unless they shrink with it. L and the branches are not
declared but found in the program (`layerwise.tracing.blocks`): L is the number of sums
with a shortcut, those in loops counted as often as they run.

==================  ==============================================================
``taki``            m weights of a branch: :math:`(c/L)^{1/m}` / fan_in each, hence
                    c/(nL) for one and 1/(n sqrt(L/c)) for two; the trunk grows by
                    exp(c E[f'^2]) at most, whatever L
``fixup``           the last weight of a branch and the classifier 0, the others
                    :math:`(2/\text{fan\_out}) L^{-1/(m-1)}`
``skipinit``        a learned scalar on each branch 0, weights Kaiming
``rezero``          the same with Glorot's weights
``scaled_branches`` Kaiming; a branch's last weight, or its learned scalar if it has
                    one, times :math:`1/\sqrt L`
``nf``              weights centred and standardized for each output, times the gain
                    that keeps the variance; block :math:`x + \alpha f(x/\beta)`, with
                    alpha and beta folded into the last and first weight of a branch
==================  ==============================================================

Outside of branches weights are Kaiming's, on shortcuts LeCun's: nothing precedes those.
The promises hold for ``z + W f(z)``, with the weight last. If a branch ends in its
activation its mean adds up along the trunk, and no scale of the weights alone helps.

References:
    [Taki2017] c/(nL), corrected for more weights; [Zhang2019]; [De2020];
    [Bachlechner2021]; [Brock2021] for gamma, alpha and beta.
"""

import functools
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp

from layerwise.errors import UnsupportedModelError, message
from layerwise.initializers.registry import Assignment, Problem, Scheme, register
from layerwise.initializers.variance_scaling import RULES
from layerwise.initializers.weights import Weight, weights
from layerwise.moments.gain import gain
from layerwise.tracing import Layer, Loop, TracedModel, dataflow, primitives
from layerwise.tracing.blocks import Block, Branch, blocks, residual_blocks
from layerwise.tracing.graph import Equation
from layerwise.tracing.model import leaf_name
from layerwise.tracing.pointwise import scalar_function
from layerwise.types import PyTree


class Residuals:
    """The residual blocks of a model, and a variance for every weight to begin with.

    Args:
        problem: The model.
        scheme: Name of the scheme, for its errors.
        rule: Name of the classic that weights start from.

    Raises:
        UnsupportedModelError: If there is no sum with a shortcut.
    """

    def __init__(
        self, problem: Problem, scheme: str, rule: str = "kaiming_fan_in"
    ) -> None:
        self.scheme = scheme
        self.traced = problem.traced
        self.blocks = residual_blocks(blocks(problem.traced))
        if not self.blocks:
            raise UnsupportedModelError(
                message(
                    f"{problem.traced.model.name} has no sum with a shortcut.",
                    f"{scheme} sets the scale of residual branches, and found none.",
                    "Use scheme='kernel_forward', which takes any graph.",
                )
            )
        self.count = sum(b.repeats for b in self.blocks)
        self.weights: dict[str, Weight] = {}
        for w in weights(problem.traced):
            self.weights.setdefault(w.path, w)
        classic = RULES[rule]
        self.variances = {
            path: classic.variance(w.fan_in, w.fan_out)
            for path, w in self.weights.items()
        }
        for block in self.blocks:
            shortcut = block.shortcut
            for layer in shortcut.layers if shortcut is not None else ():
                self.variances[layer.path] = 1.0 / self.weights[layer.path].fan_in

    def branches(self) -> list[tuple[Block, Branch]]:
        """Returns every residual branch; a layer of two belongs to the inner one."""
        return [(b, branch) for b in self.blocks for branch in b.residuals]

    def own_layers(self, branch: Branch, taken: set[str]) -> list[Layer]:
        """Returns the layers of a branch that no inner one has; marks them as taken."""
        own = [y for y in branch.layers if y.path not in taken]
        taken.update(y.path for y in own)
        return own

    def scalars(self, branch: Branch) -> list[str]:
        """Returns the leaves of one entry that a branch is multiplied by."""
        avals = self.traced.graph.avals
        values = self.traced.leaf_values
        return [n for n in branch.multipliers if avals[values[n]].size == 1]


def _taki(problem: Problem) -> Assignment:
    found = Residuals(problem, "taki")
    c = float(problem.options.get("c", 1.0))
    taken: set[str] = set()
    for _, branch in found.branches():
        own = found.own_layers(branch, taken)
        for layer in own:
            share = (c / found.count) ** (1.0 / len(own))
            found.variances[layer.path] = share / found.weights[layer.path].fan_in
    return Assignment(found.variances)


def _fixup(problem: Problem) -> Assignment:
    found = Residuals(problem, "fixup", "kaiming_fan_out")
    constants: dict[str, float] = {}
    taken: set[str] = set()
    last = [problem.traced.all_layers()[-1]]
    for _, branch in found.branches():
        own = found.own_layers(branch, taken)
        if not own:
            continue
        last.append(own[-1])
        for layer in own[:-1]:
            # [Zhang2019] L^(-1/(2m-2)) on the standard deviation
            found.variances[layer.path] *= found.count ** (-1.0 / (len(own) - 1))
        constants |= dict.fromkeys(found.scalars(branch), 1.0)
    for layer in last:
        leaf = found.weights[layer.path].leaf
        if leaf is not None:
            constants[leaf] = 0.0
    return Assignment(found.variances, constants)


def _zero_scalars(scheme: str, rule: str, problem: Problem) -> Assignment:
    found = Residuals(problem, scheme, rule)
    constants: dict[str, float] = {}
    for block, branch in found.branches():
        scalars = found.scalars(branch)
        if not scalars:
            raise UnsupportedModelError(
                message(
                    f"The residual branch that ends at {block.source} is multiplied by "
                    "no learned scalar.",
                    f"{scheme} starts that scalar at zero, and has nothing to set.",
                    "Multiply the branch by self.param('alpha', zeros, ()), or use "
                    "scheme='fixup' or 'scaled_branches'.",
                )
            )
        constants |= dict.fromkeys(scalars, 0.0)
    return Assignment(found.variances, constants)


def _scaled_branches(problem: Problem) -> Assignment:
    found = Residuals(problem, "scaled_branches")
    constants: dict[str, float] = {}
    taken: set[str] = set()
    for _, branch in found.branches():
        own = found.own_layers(branch, taken)
        scalars = found.scalars(branch)
        if scalars:
            constants |= dict.fromkeys(scalars, 1.0)
            constants[scalars[-1]] = found.count**-0.5
        elif own:
            found.variances[own[-1].path] /= found.count
    return Assignment(found.variances, constants)


def _nf(problem: Problem) -> Assignment:
    found = Residuals(problem, "nf")
    traced = problem.traced
    alpha = float(problem.options.get("alpha", 0.2))
    for layer in traced.all_layers():
        phi = activation_before(traced, layer)
        g = 1.0 if phi is None else float(gain(phi, "variance"))
        found.variances[layer.path] = g**2 / found.weights[layer.path].fan_in
    taken: set[str] = set()
    trunk, end = 1.0, -1
    for block in found.blocks:
        if traced.flow.root.get(block.entry) != end:
            trunk = 1.0
        for branch in block.residuals:
            own = found.own_layers(branch, taken)
            if own:  # [Brock2021] x + alpha f(x / beta), beta^2 the trunk's variance
                found.variances[own[0].path] /= trunk
                found.variances[own[-1].path] *= alpha**2
        shortcut = block.shortcut
        if shortcut is not None and shortcut.layers:
            first = shortcut.layers[0].path
            found.variances[first] /= trunk
            trunk = 1.0
        trunk += alpha**2
        end = block.exit
    return Assignment(
        found.variances, adjust=functools.partial(standardize, found.weights)
    )


def standardize(operations: Mapping[str, Weight], params: PyTree) -> PyTree:
    """Returns parameters whose weights have mean 0 and equal norm for each output.

    The second moment of each leaf stays as it is.

    References:
        [Brock2021] scaled weight standardization.
    """
    by_leaf = {w.leaf: w for w in operations.values() if w.direct and not w.lookup}
    flat, tree = jax.tree_util.tree_flatten_with_path(params)
    out = []
    for path, x in flat:
        w = by_leaf.get(leaf_name(path))
        if w is not None:
            extra = x.ndim - len(w.shape)
            kept = {*range(extra), *(a + extra for a in (*w.outs, *w.batched))}
            axes = tuple(a for a in range(x.ndim) if a not in kept)
            second = jnp.mean(jnp.square(x))
            x = x - x.mean(axes, keepdims=True)
            norm = jnp.mean(jnp.square(x), axes, keepdims=True)
            x = x * jnp.sqrt(second / jnp.where(norm > 0.0, norm, 1.0))
        out.append(x)
    return jax.tree.unflatten(tree, out)


def activation_before(
    traced: TracedModel, layer: Layer
) -> Callable[[jax.Array], jax.Array] | None:
    """Returns the scalar function between a layer and what it reads of, or None.

    A bias before the activation, and pooling behind it, are left out.
    """
    part = _part_of(traced, layer)
    assert part is not None
    graph, flow = part.graph, part.flow
    root, producers = layer.operand_root, graph.producers()
    found: dict[int, Equation] = {}
    stack = [layer.operand]
    while stack:
        value = stack.pop()
        if value != root and value not in found and flow.root.get(value) == root:
            found[value] = producers[value]
            stack += producers[value].values_in
    path = [found[v] for v in sorted(found)]
    for start, end in _windows(len(path)):
        if all(e.name in primitives.LAYOUT for e in path[start:end]):
            continue
        source = path[start - 1].outputs[0] if start else root
        phi = scalar_function(
            path[start:end],
            source,
            path[end - 1].outputs[0],
            lambda v: dataflow.constant_value(graph, v, flow),
        )
        if phi is not None:
            return phi
    return None


def _part_of(part: TracedModel | Loop, layer: Layer) -> TracedModel | Loop | None:
    """Returns the model, or the loop of it, whose graph a layer is in."""
    if layer in part.layers:
        return part
    inner = (_part_of(loop, layer) for loop in part.loops)
    return next((p for p in inner if p is not None), None)


def _windows(count: int) -> Iterator[tuple[int, int]]:
    """Yields the runs of `count` steps that begin first, the longest of each first."""
    for start in range(count):
        for end in range(count, start, -1):
            yield start, end


def _register(
    name: str,
    solve: Callable[[Problem], Assignment],
    preserves: str,
    source: str,
    options: tuple[str, ...] = (),
    needs: str = "residual blocks",
) -> None:
    register(
        Scheme(
            name,
            solve,
            needs=needs,
            preserves=preserves,
            supports=("dense", "ReLU", "residual"),
            source=source,
            options=options,
        )
    )


_register("taki", _taki, "both directions, within exp(c/2)", "[Taki2017]", ("c",))
_register("fixup", _fixup, "the trunk, exactly", "[Zhang2019]")
_register(
    "skipinit",
    functools.partial(_zero_scalars, "skipinit", "kaiming_fan_in"),
    "the trunk, exactly",
    "[De2020]",
    needs="residual blocks with a scalar",
)
_register(
    "rezero",
    functools.partial(_zero_scalars, "rezero", "glorot"),
    "the trunk, exactly",
    "[Bachlechner2021]",
    needs="residual blocks with a scalar",
)
_register(
    "scaled_branches",
    _scaled_branches,
    "both directions, within e",
    "[Hanin2018]",
)
_register("nf", _nf, "variance, known in advance", "[Brock2021]", ("alpha",))
