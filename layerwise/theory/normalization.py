"""Recognizes a normalization by what it computes.

A normalization subtracts a mean over some axes and divides by the root of the variance
(or mean square) over them. However it is written (two-pass, ``E[x^2] - E[x]^2`` clipped
at zero, with reshapes into groups), its equations are evaluated on one random array and
compared with that definition; what agrees to float32 is one, nothing else is.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np

from layerwise import _jax
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.refusal import NoSoundRule
from layerwise.theory.state import State
from layerwise.tracing import TracedModel
from layerwise.tracing.graph import Equation


@dataclasses.dataclass(frozen=True)
class Normalization:
    """What a normalization does.

    Attributes:
        axes: The array axes that statistics are taken over; with `groups`, the last
            axis is cut into groups, and only within one.
        groups: Number of groups of channels, where channels are normalized over.
        centred: Whether the mean is subtracted.
        epsilon: What is added to the variance.
        scale: Constant that the result is multiplied by.
        offset: Constant added after that.
    """

    axes: tuple[int, ...]
    groups: int
    centred: bool
    epsilon: float
    scale: float
    offset: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Applies it, in float64."""
        last = x.ndim - 1
        y, axes = x, self.axes
        if last in axes:
            y = x.reshape(*x.shape[:-1], self.groups, x.shape[-1] // self.groups)
            axes = (*(a for a in axes if a != last), last + 1)
        mean = y.mean(axis=axes, keepdims=True) if self.centred else 0.0
        variance = np.mean((y - mean) ** 2, axis=axes, keepdims=True)
        out = (y - mean) / np.sqrt(variance + self.epsilon)
        return out.reshape(x.shape) * self.scale + self.offset


@dataclasses.dataclass(frozen=True)
class Extent:
    """What one statistic is taken over.

    Attributes:
        examples: Number of examples (1 unless batch normalization).
        positions: Whether over all positions, or at each by itself.
        channels: Number of channels (1 unless layer or group normalization).
    """

    examples: int
    positions: bool
    channels: int


def extent_of(ctx: RuleContext, node: Node, state: State) -> Extent:
    """Returns what the statistics of a normalization are taken over.

    Raises:
        NoSoundRule: If over some spatial axes only.
    """
    found: Normalization = node.data
    roles = [state.axes[a] for a in found.axes]
    spatial = state.axes.count("s")
    over = roles.count("s")
    if over not in (0, spatial):
        raise NoSoundRule("a normalization over some spatial axes only")
    sizes = ctx.shape(node.output)
    mine = [sizes[a] for a in found.axes if state.axes[a] == "c"]
    channels = math.prod(mine) // found.groups if mine else 1
    examples = ctx.batch if "b" in roles else 1
    return Extent(examples, bool(over) or (not spatial and examples > 1), channels)


_KNOWN: dict[object, Normalization | None] = {}


def recognize(
    traced: TracedModel,
    start: int,
    end: int,
    equations: Sequence[Equation],
    constant: Callable[[int], np.ndarray | None],
) -> Normalization | None:
    """Returns the normalization that takes `start` to `end`, or None."""
    avals = traced.graph.avals
    shape = tuple(avals[start].shape)
    if tuple(avals[end].shape) != shape or len(shape) < 2:
        return None
    reductions = [e for e in equations if e.name == "reduce_sum"]
    if not reductions or any(e.name in ("exp", "dot_general") for e in equations):
        return None
    outside = {}
    for equation in equations:
        inner = {v for e in equations for v in e.outputs}
        for v in equation.values_in:
            if v != start and v not in inner:
                array = constant(v)
                if array is None:
                    return None
                outside[v] = array
    small = tuple(float(np.ravel(v)[0]) for v in outside.values() if np.size(v))
    key = (
        shape,
        tuple((e.name, str(e.params.get("axes")), *_literals(e)) for e in equations),
        small,
    )
    if key not in _KNOWN:
        _KNOWN[key] = _compare(traced, start, end, equations, outside, shape)
    return _KNOWN[key]


def _literals(equation: Equation) -> list[float]:
    found = []
    for atom in equation.inputs:
        if not isinstance(atom, int) and np.ndim(atom.val) == 0:
            found.append(float(atom.val))
    return found


def _compare(
    traced: TracedModel,
    start: int,
    end: int,
    equations: Sequence[Equation],
    outside: dict[int, np.ndarray],
    shape: tuple[int, ...],
) -> Normalization | None:
    # Fixed arrays: correlated with their axes, so that no two candidates agree.
    count = math.prod(shape)
    base = np.sin(np.arange(count) * 12.9898 + np.arange(count) ** 2 * 0.0137) * 1.7
    ramp = sum(
        0.3
        * np.cos(np.arange(n) * (2.1 + a)).reshape(
            [-1 if i == a else 1 for i in range(len(shape))]
        )
        for a, n in enumerate(shape)
    )
    first = (base.reshape(shape) + ramp + 0.4).astype(np.float32)
    literals = {abs(v) for e in equations for v in _literals(e) if 0 <= abs(v) < 0.1}
    # Of a single set, one array cannot tell whether its mean is taken out; and only of
    # one that is as small what is added to its variance.
    small = np.sqrt(min((v for v in literals if v > LEAST_ADDED), default=1e-6))
    arrays = tuple(
        x.astype(np.float32) for x in (first, 0.5 * first - 1.0, small * first)
    )
    results = []
    for x in arrays:
        env: dict[int, object] = {
            v: jnp.asarray(a, traced.graph.avals[v].dtype) for v, a in outside.items()
        }
        env[start] = jnp.asarray(x, traced.graph.avals[start].dtype)
        for equation in equations:
            operands = [
                env[a] if isinstance(a, int) else a.val for a in equation.inputs
            ]
            outs = _jax.bind(equation.eqn, operands)
            env.update(zip(equation.outputs, outs, strict=True))
        results.append(np.asarray(env[end], np.float64))
    for axes, groups in _candidates(traced, equations, shape):
        for centred in (True, False):
            for epsilon in sorted(literals | {0.0}):
                plain = Normalization(axes, groups, centred, epsilon, 1.0, 0.0)
                fitted = _fit(
                    plain, np.stack(arrays).astype(np.float64), np.stack(results)
                )
                if fitted is not None:
                    return fitted
    return None


LEAST_ADDED = 1e-20
"""What is taken for an epsilon: its root still squares to a normal float32."""


def _fit(
    plain: Normalization, arrays: np.ndarray, got: np.ndarray
) -> Normalization | None:
    with np.errstate(divide="ignore", invalid="ignore"):  # sets of one entry
        y = np.stack([plain(x) for x in arrays])
    spread = y.std() if np.all(np.isfinite(y)) else 0.0
    if not spread > 1e-6:
        return None
    scale = float(((y - y.mean()) * (got - got.mean())).mean() / spread**2)
    offset = float(got.mean() - scale * y.mean())
    if not np.allclose(
        scale * y + offset, got, rtol=0, atol=3e-4 * (abs(scale) + 1e-9)
    ):
        return None
    if abs(offset) < 1e-4 * abs(scale):
        offset = 0.0
    return dataclasses.replace(plain, scale=scale, offset=offset)


def _candidates(
    traced: TracedModel, equations: Sequence[Equation], shape: tuple[int, ...]
) -> list[tuple[tuple[int, ...], int]]:
    """Returns the (axes, groups) that the reductions of the equations suggest."""
    found: list[tuple[tuple[int, ...], int]] = []
    last = len(shape) - 1
    for equation in equations:
        if equation.name != "reduce_sum":
            continue
        operand = tuple(traced.graph.avals[equation.values_in[0]].shape)
        axes = tuple(equation.params["axes"])
        if operand == shape:
            found.append((axes, 1))
        elif len(operand) == len(shape) + 1 and operand[:last] == shape[:last]:
            kept = tuple(a for a in axes if a < last)
            if last + 1 in axes:  # (..., groups, channels of one)
                found.append(((*kept, last), operand[last]))
    return list(dict.fromkeys(found))
