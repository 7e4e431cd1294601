"""What no weight has touched: the arrays made of inputs alone, and their moments."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from layerwise import _jax
from layerwise.theory import fluctuation, lags as lagging, marginal
from layerwise.theory.context import RuleContext
from layerwise.theory.state import Field, Grade, State
from layerwise.tracing import TracedModel
from layerwise.tracing.dataflow import constant_value


def roles(shape: Sequence[int], batch: int) -> tuple[str, ...]:
    """Returns the roles of an input's axes: examples first, channels last."""
    if not shape:
        return ()
    if shape[0] != batch:
        return ("s",) * (len(shape) - 1) + ("c",)
    if len(shape) == 1:
        return ("b",)
    return ("b",) + ("s",) * (len(shape) - 2) + ("c",)


def state(
    ctx: RuleContext, value: int, lags: tuple[tuple[int, ...], ...] | None = None
) -> State:
    """Returns the moments of a value that no weight has touched. Exact.

    Args:
        ctx: The context.
        value: Its number.
        lags: The lags to hold, per spatial axis; those of `lag_values` if None.
    """
    return of_array(ctx, np.asarray(ctx.data[value], np.float64), lags, ctx.white)


def with_law(ctx: RuleContext, value: int, state: State) -> State:
    """Returns a term of a sum with the law of its entries, if no weight has touched it.

    Weights make a normal value of any other, so that nothing else reads it.
    """
    array = ctx.data.get(value)
    if array is None or ctx.white or array.ndim < 2:
        return state
    x = np.asarray(array, np.float64)
    apart = x - x.mean(axis=(0, -1), keepdims=True)
    spread = np.sqrt(np.mean(np.square(apart), axis=(0, -1), keepdims=True))
    apart = np.divide(apart, spread, out=np.zeros_like(apart), where=spread > 0)
    shape = marginal.of_samples(apart.ravel()[:: max(1, apart.size // SAMPLES)])
    return state.map(lambda f: f.replace(shape=shape, symmetric=False))


SAMPLES = 4096
"""Entries that the law of data is read from."""


def of_array(
    ctx: RuleContext,
    array: np.ndarray,
    lags: tuple[tuple[int, ...], ...] | None = None,
    white: bool = False,
) -> State:
    """Returns the moments of an array: examples first, channels last."""
    axes = roles(array.shape, ctx.batch)
    x = array
    if "b" not in axes:
        x = x[None]
    if "c" not in axes:
        x = x[..., None]
    sizes = x.shape[1:-1]
    if lags is None:
        lags = tuple(lagging.lag_values(n, ctx.level) for n in sizes)
    field = _white(ctx, x, lags) if white else _field(ctx, x, lags)
    return State(axes, ((x.shape[-1], field),), Grade.EXACT, Grade.EXACT)


def _white(ctx: RuleContext, x: np.ndarray, lags: tuple[tuple[int, ...], ...]) -> Field:
    sizes = x.shape[1:-1]
    table = np.zeros((ctx.classes, *map(len, lags), *sizes))
    table[(0, *lagging.zero(lags))] = np.mean(x**2, axis=(0, -1))
    return Field(np.zeros(sizes), table, lags, symmetric=True).normalized()


def _field(ctx: RuleContext, x: np.ndarray, lags: tuple[tuple[int, ...], ...]) -> Field:
    n, channels = x.shape[0], x.shape[-1]
    same = lagging.products(np.moveaxis(x, 0, -1).reshape(*x.shape[1:-1], -1), lags)
    table = same[None] / (n * channels)
    if ctx.classes == 2:
        both = lagging.products(x.sum(axis=0), lags)
        apart = (both - same) / (max(n * (n - 1), 1) * channels)
        table = np.stack([table[0], apart])
    mean = x.mean(axis=(0, -1))
    squares = np.square(x).mean(axis=-1)
    spread = fluctuation.of_batch(squares, lags)
    powers = fluctuation.powers_of(squares)
    uneven = fluctuation.unevenness(squares)
    field = Field(mean, table, lags, spread=spread, powers=powers, uneven=uneven)
    return field.normalized()


def constant(
    ctx: RuleContext,
    array: np.ndarray,
    state: State,
    shape: Sequence[int],
) -> list[Field]:
    """Returns the moments of a fixed array, broadcast, at the channels of each part.

    Args:
        ctx: The context.
        array: The array.
        state: The value that it is added to or multiplied with.
        shape: The value's shape.
    """
    order = [a for role in "bsc" for a, r in enumerate(state.axes) if r == role]
    sizes = [shape[a] for a in order if state.axes[a] == "s"]
    x = np.broadcast_to(np.asarray(array, np.float64), shape).transpose(order)
    x = x.reshape(-1, *sizes, state.channels)
    x = np.broadcast_to(x, (ctx.batch, *x.shape[1:]))
    found, first = [], 0
    for n, f in state.parts:
        (_, field) = of_array(ctx, x[..., first : first + n], f.lags).parts[0]
        found.append(field)
        first += n
    return found


def deterministic(traced: TracedModel, inputs: Sequence[Any]) -> dict[int, np.ndarray]:
    """Returns every value that is made of the data inputs alone, as an array."""
    found: dict[int, Any] = dict(zip(traced.input_values, inputs, strict=True))
    graph = traced.graph
    for equation in graph.equations:
        signal = [v for v in equation.values_in if traced.flow.is_signal(v)]
        others = [v for v in equation.values_in if not traced.flow.is_signal(v)]
        if not signal or not all(v in found for v in signal):
            continue
        constants = {}
        for v in others:
            if traced.flow.leaves_of(v):
                break
            constants[v] = jnp.asarray(constant_value(graph, v, traced.flow))
        else:
            operands = [
                (found[a] if a in found else constants[a])
                if isinstance(a, int)
                else a.val
                for a in equation.inputs
            ]
            outs = _jax.bind(equation.eqn, operands)
            found.update(zip(equation.outputs, outs, strict=True))
    return {v: np.asarray(x) for v, x in found.items()}


def read_without_weights(
    traced: TracedModel, arrays: Mapping[int, np.ndarray]
) -> frozenset[int]:
    """Returns the values that equations read whose results are among `arrays`."""
    return frozenset(
        v
        for e in traced.graph.equations
        if e.outputs and e.outputs[0] in arrays
        for v in e.values_in
    )
