r"""Draws of signals from the moments that their states hold.

A signal behind fresh weights is :math:`x W`: given x it is normal, and its covariance
between positions is the kernel of that network's x, which fluctuates about the mean by
:math:`1/C` with the channels of x. A function that is not linear in the kernel feels
this by the number of positions over C. So what several signals are projections of is
drawn first, once for all of them, and projected by drawn weights. Where x has been
normalized over its channels at every position, the draws are too; where it is data, it
is taken as it is.

Drawn channels are made to have exactly the kernel's second moments between positions,
so that what is linear in the kernel has little sampling error.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import jax
import numpy as np

from layerwise.theory import lags as lagging, marginal
from layerwise.theory.context import Node, RuleContext
from layerwise.theory.refusal import NoSoundRule
from layerwise.theory.state import Field, State, inverse


LONGEST = 1024
"""Positions whose kernel is factorized."""


@dataclasses.dataclass(frozen=True, eq=False)
class _Tokens:
    """Draws of what signals are projections of.

    Attributes:
        draws: ``(pair, repeat, example, channel)``.
        kernel: ``(pair, pair)``: its mean second moments.
    """

    draws: np.ndarray
    kernel: np.ndarray


class Drawer:
    """Draws signals that belong together.

    Args:
        ctx: The context.
        repeats: How often the batch is drawn.
        first: Seed of the first draw; what is to be independent begins elsewhere.
    """

    def __init__(self, ctx: RuleContext, repeats: int, first: int = 0):
        self.ctx, self.repeats = ctx, repeats
        self.seeds = itertools.count(first)
        self.tokens: dict[int, _Tokens | None] = {}

    def signal(self, value: int, state: State) -> np.ndarray:
        """Returns ``(repeat, *shape)`` draws of a normal signal."""
        if len(state.parts) > 1 or state.average().shape is not None:
            raise NoSoundRule("an attention to signals that are not normal")
        (width, field) = state.parts[0]
        source = projected(self.ctx, value)
        tokens = None if source is None else self._tokens(source)
        if tokens is None or len(tokens.kernel) != math.prod(field.sizes):
            drawn = self._normal(field, width)
        else:
            drawn = self._projection(tokens, field, width)
        with np.errstate(over="ignore", under="ignore"):
            drawn = drawn * np.exp(0.5 * field.log_scale)
        if not np.all(np.isfinite(drawn)):
            raise NoSoundRule("signals beyond the range of numbers")
        return self._arranged(drawn, field, state.axes, self.ctx.shape(value))

    def cotangent(self, state: State, shape: Sequence[int]) -> np.ndarray:
        """Returns ``(repeat, *shape)`` draws, their scale taken out."""
        field = state.average()
        drawn = self._normal(field, state.channels)
        return self._arranged(drawn, field, state.axes, shape)

    def _normal(self, field: Field, width: int) -> np.ndarray:
        """``(pair, repeat, example, channel)`` normal draws, of the field's moments."""
        kernels, mean = centred_kernels(field)
        return mean[:, None, None, None] + self._jointly(kernels, width)

    def _of_law(self, field: Field, width: int) -> np.ndarray:
        """Returns what `_normal` does, of the law of the field, a normal value's."""
        law = field.shape
        if law is None:
            return self._normal(field, width)
        kernels, mean = centred_kernels(field)
        sd = np.sqrt(np.maximum(np.diagonal(kernels[0]), 0.0))
        alike = kernels * inverse(np.outer(sd, sd))
        drawn = self._jointly(marginal.latent(law, np.clip(alike, -1.0, 1.0)), width)
        drawn = np.interp(drawn, marginal.nodes(), law).astype(np.float32)
        mean, sd = (v[:, None, None, None] for v in (mean, sd))
        return mean + sd * drawn

    def _jointly(self, kernels: np.ndarray, width: int) -> np.ndarray:
        """``(pair, repeat, example, channel)`` normal draws of these covariances."""
        batch, count = self.ctx.batch, len(kernels[0])
        own = self._independent(count, self.repeats * batch * width)
        own = own.reshape(count, self.repeats, batch, width)
        if len(kernels) == 1:
            drawn = np.tensordot(_root(kernels[0]), own, 1)
        else:
            shared = self._independent(count, self.repeats * width)
            shared = shared.reshape(count, self.repeats, 1, width)
            drawn = np.tensordot(_root(kernels[0] - kernels[1]), own, 1)
            drawn = drawn + np.tensordot(_root(kernels[1]), shared, 1)
        return drawn

    def _independent(self, rows: int, columns: int) -> np.ndarray:
        return _independent(next(self.seeds), rows, columns)

    def _tokens(self, source: int) -> _Tokens | None:
        if source not in self.tokens:
            self.tokens[source] = self._draw_tokens(source)
        return self.tokens[source]

    def _draw_tokens(self, source: int) -> _Tokens | None:
        state = self.ctx.state_of(source)
        if state.axes.count("b") != 1:
            return None
        if source in self.ctx.data and not self.ctx.white:
            array = np.asarray(self.ctx.data[source], np.float32)
            order = [a for r in "sbc" for a, x in enumerate(state.axes) if x == r]
            batch = array.shape[state.axes.index("b")]
            draws = array.transpose(order).reshape(-1, 1, batch, state.channels)
            draws = np.broadcast_to(draws, (len(draws), self.repeats, *draws.shape[2:]))
            flat = draws[:, 0].reshape(len(draws), -1)
            return _Tokens(draws, flat @ flat.T / flat.shape[1])
        field = state.average().replace(log_scale=0.0)
        kernels, mean = centred_kernels(field)
        draws = self._of_law(field, state.channels)
        centred = normalizes(self.ctx, source)
        kernel = kernels[0] + np.outer(mean, mean)
        if centred is None:
            draws = draws * np.sqrt(self._factors(field))
        else:
            draws = draws - centred * draws.mean(axis=-1, keepdims=True)
            power = np.square(draws).mean(axis=-1, keepdims=True)
            wanted = np.diagonal(kernel)[:, None, None, None]
            draws = draws * np.sqrt(wanted / np.maximum(power, 1e-30))
        return _Tokens(draws.astype(np.float32), kernel)

    def _factors(self, field: Field) -> np.ndarray:
        """``(pair, repeat, example, 1)``: second moments of one network and example."""
        count = math.prod(field.sizes)
        flat = np.ones(field.sizes)
        spread = field.spreads.reshape(*field.spreads.shape, *(1,) * field.rank) * flat
        log = np.log1p(np.maximum(_pairs(field, spread), 0.0))
        if not log.any():
            return np.ones((count, 1, 1, 1))
        z = self._independent(count, self.repeats * self.ctx.batch)
        z = (_root(log) @ z).reshape(count, self.repeats, self.ctx.batch, 1)
        return np.exp(z - 0.5 * np.diagonal(log)[:, None, None, None])

    def _projection(self, tokens: _Tokens, field: Field, width: int) -> np.ndarray:
        """Draws of tokens times fresh weights, plus biases that all positions share."""
        kernels, mean = centred_kernels(field)
        target, known = kernels[0].ravel(), tokens.kernel.ravel()
        columns = np.stack([known, np.ones_like(known)], axis=1)
        gain, bias = np.linalg.lstsq(columns, target, rcond=None)[0]
        top = np.abs(target).max(initial=0.0)
        if bias < 1e-3 * top or np.ptp(known) < 1e-6 * np.abs(known).max():
            gain, bias = float(target @ known / max(known @ known, 1e-300)), 0.0
        if np.abs(gain * known + bias - target).max() > 0.05 * top:
            return self._normal(field, width)
        count, repeats, batch, channels = tokens.draws.shape
        weights = self._independent(channels, repeats * width)
        weights = weights.reshape(channels, repeats, width).transpose(1, 0, 2)
        x = tokens.draws.transpose(1, 0, 2, 3).reshape(repeats, -1, channels)
        drawn = (x @ weights).reshape(repeats, count, batch, width)
        drawn = drawn.transpose(1, 0, 2, 3) * np.sqrt(max(gain, 0.0) / channels)
        if bias:
            own = self._independent(1, repeats * width).reshape(1, repeats, 1, width)
            drawn = drawn + np.sqrt(bias) * own
        return mean[:, None, None, None] + drawn

    def _arranged(
        self,
        drawn: np.ndarray,
        field: Field,
        roles: Sequence[str],
        shape: Sequence[int],
    ) -> np.ndarray:
        """Returns ``(repeat, *shape)`` from ``(pair, repeat, example, channel)``."""
        if roles.count("b") != 1:
            raise NoSoundRule("an attention of signals without examples")
        channels = [n for n, r in zip(shape, roles, strict=True) if r == "c"]
        drawn = drawn.reshape(*field.sizes, self.repeats, self.ctx.batch, *channels)
        places = {"s": 0, "b": field.rank + 1, "c": field.rank + 2}
        order = [field.rank]
        for r in roles:
            order.append(places[r])
            places[r] += 1
        return drawn.transpose(order)


_LINEAR = ("add", "sub", "mul", "div", "reshape", "transpose", "split", "slice")


def _behind(ctx: RuleContext, value: int) -> Node | None:
    """Returns the first node in front of a value that does more than to scale it."""
    node = ctx.producer(value)
    while node is not None and len(node.inputs) == 1:
        if node.name not in (*_LINEAR, "squeeze", "pointwise"):
            return node
        node = ctx.producer(node.inputs[0])
    return None


def projected(ctx: RuleContext, value: int) -> int | None:
    """Returns the value that a signal is a product of with weights, if it is one."""
    node = _behind(ctx, value)
    return node.inputs[0] if node is not None and node.name == "dot_general" else None


def normalizes(ctx: RuleContext, value: int) -> float | None:
    """Returns whether a value has been normalized over its channels at each position.

    Returns:
        1.0 if their mean was taken out too, 0.0 if not; None if it was not normalized.
    """
    node = _behind(ctx, value)
    if node is None or node.name != "normalization" or node.data.groups != 1:
        return None
    state = ctx.state_of(node.inputs[0])
    over = {state.axes[a] for a in node.data.axes}
    return float(node.data.centred) if over == {"c"} else None


def centred_kernels(field: Field) -> tuple[np.ndarray, np.ndarray]:
    """Returns covariances of all positions, laid behind each other, and their means.

    Returns:
        ``(class, pair, pair)`` and ``(pair,)``, both at the field's scale.
    """
    count = math.prod(field.sizes)
    if not lagging.is_complete(field.lags, field.sizes) or count > LONGEST:
        raise NoSoundRule(f"{count} positions, whose pairs are held by lag")
    product = field.mean * lagging.shifted(field.mean, field.lags)
    kernels = np.stack([_pairs(field, one) for one in field.table - product])
    return kernels, np.broadcast_to(field.mean, field.sizes).ravel()


def _pairs(field: Field, table: np.ndarray) -> np.ndarray:
    """``(pair, pair)`` from ``(*lags, *positions)``."""
    count = math.prod(field.sizes)
    number = np.arange(count, dtype=float).reshape(field.sizes)
    there = lagging.shifted(number, field.lags)
    inside = lagging.inside(field.lags, field.sizes)
    here = np.broadcast_to(number, there.shape)
    out = np.zeros((count, count))
    out[here[inside].astype(int), there[inside].astype(int)] = table[inside]
    return out


def _root(kernel: np.ndarray) -> np.ndarray:
    """A root of a covariance, what is negative by rounding left out."""
    values, vectors = np.linalg.eigh(0.5 * (kernel + kernel.T))
    return (vectors * np.sqrt(np.maximum(values, 0.0))).astype(np.float32)


@functools.lru_cache(maxsize=12)
def _independent(seed: int, rows: int, columns: int) -> np.ndarray:
    """Returns normal draws whose second moments between rows are exactly those of 1."""
    z = np.array(jax.random.normal(jax.random.key(seed), (rows, columns)))
    if columns >= 4 * rows:
        values, vectors = np.linalg.eigh(np.asarray(z @ z.T, np.float64) / columns)
        root = (vectors / np.sqrt(values)) @ vectors.T
        z = root.astype(np.float32) @ z
    z.flags.writeable = False
    return z
