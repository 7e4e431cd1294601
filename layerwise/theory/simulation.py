r"""Moments of a function of normal signals, by drawing the signals and not the network.

Behind fresh weights a signal is normal given the layer in front, its channels are
independent, and their covariance between positions is the kernel that the state holds.
So the law of everything that a block of equations makes of such signals is known
without the network: the signals are drawn (`layerwise.theory.drawing`), and the
equations evaluated on them, forward and backward.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.theory import data, fluctuation, marginal
from layerwise.theory.attention import Block
from layerwise.theory.axes import of_output
from layerwise.theory.context import RuleContext
from layerwise.theory.drawing import Drawer, projected
from layerwise.theory.refusal import NoSoundRule
from layerwise.theory.state import Field, State
from layerwise.tracing.graph import evaluate


WORK = 3e8
"""Multiplications in the products of a block, all repetitions and groups together."""
ENTRIES = 2e6
"""Entries drawn of a signal, of what it is a projection of, or of its weights."""
SEEDS = 10_000
"""Seeds that one group of examples may use; each has its own."""
FEWEST, MOST = 4, 2048
"""Repetitions of the batch."""


def forward(
    ctx: RuleContext, block: Block, states: Sequence[State]
) -> tuple[State, float]:
    """Returns the moments of the block's output, and their relative standard error."""
    roles = of_output(block, _roles(block, states))
    repeats = _repeats(ctx, block)
    draws = _draw_all(ctx, block, states, repeats)
    run, _ = _compiled(block)
    outside = _outside(ctx, block)
    got = np.asarray(run(draws, outside), np.float64)
    field, error = _moments(ctx, got, roles)
    field = _with_law(ctx, field, got, roles)
    flipped = np.asarray(run([-d[:1] for d in draws], outside))
    odd = np.allclose(flipped, -got[:1], rtol=1e-3, atol=1e-5 * np.abs(got).max())
    if odd and all(s.average().symmetric for s in states):
        field = field.replace(mean=0.0 * field.mean, symmetric=True)
    return State(roles, ((_channels(got, roles), field),)), error


def summary(
    ctx: RuleContext, block: Block, states: Sequence[State]
) -> tuple[float, float]:
    """Returns mean and second moment of all entries of the block's output."""
    draws = _draw_all(ctx, block, states, _repeats(ctx, block))
    run, _ = _compiled(block)
    got = np.asarray(run(draws, _outside(ctx, block)), np.float64)
    got = got[np.abs(got) < 1e30]  # a mask's "minus infinity" is no moment
    if not got.size:
        raise NoSoundRule("nothing but masked entries")
    return float(got.mean()), float(np.square(got).mean())


def backward(
    ctx: RuleContext,
    block: Block,
    states: Sequence[State],
    out: State,
    cotangent: State,
) -> tuple[list[State], list[tuple[float, float]], float]:
    """Returns the cotangents' moments, and their largest relative standard error.

    Returns:
        Those of the inputs; (mean, second moment) of those reported; the error.
    """
    repeats = _repeats(ctx, block)
    draws = _draw_all(ctx, block, states, repeats)
    given = cotangent.average().normalized()
    scale = given.log_scale
    shape = ctx.shape(block.output)
    first = SEEDS * ctx.group[0] + 1000
    seeds = Drawer(ctx, repeats, first).cotangent(
        dataclasses.replace(cotangent, parts=((cotangent.channels, given),)), shape
    )
    _, pull = _compiled(block)
    dtype = block.graph.avals[block.output].dtype
    found, inside = pull(draws, _outside(ctx, block), jnp.asarray(seeds, dtype))
    back, worst = [], 0.0
    for state, array in zip(states, found, strict=True):
        field, error = _moments(ctx, np.asarray(array, np.float64), state.axes)
        worst = max(worst, error)
        field = field.replace(
            mean=0.0 * field.mean, symmetric=True, log_scale=field.log_scale + scale
        )
        back.append(State(state.axes, ((state.channels, field),)))
    root, power = np.exp(np.clip([0.5 * scale, scale], -700, 700))
    moments = [(float(m) * root, float(s) * power) for m, s in inside]
    return back, moments, worst


def _roles(block: Block, states: Sequence[State]) -> Mapping[int, tuple[str, ...]]:
    return {v: s.axes for v, s in zip(block.inputs, states, strict=True)}


def _channels(array: np.ndarray, roles: Sequence[str]) -> int:
    sizes = zip(array.shape[1:], roles, strict=True)
    return math.prod(n for n, r in sizes if r == "c")


def _repeats(ctx: RuleContext, block: Block) -> int:
    """Returns how often the batch is drawn."""
    work = 1.0
    for e in block.equations:
        if e.name == "dot_general":
            contract, _ = e.params["dimension_numbers"]
            shape = ctx.shape(e.values_in[0])
            over = math.prod(shape[a] for a in contract[0])
            work += over * math.prod(ctx.shape(e.outputs[0]))
    sizes = [math.prod(ctx.shape(v)) for v in (*block.inputs, block.output)]
    for v in block.inputs:
        source = projected(ctx, v)
        if source is not None:
            channels = ctx.state_of(source).channels
            sizes.append(math.prod(ctx.shape(source)))
            sizes.append(channels * ctx.state_of(v).channels)
    repeats = min(WORK / work, ENTRIES / max(sizes)) / ctx.group[1]
    return int(np.clip(repeats, FEWEST, MOST))


def _outside(ctx: RuleContext, block: Block) -> list[jax.Array]:
    arrays = []
    for v in block.outside:
        array = ctx.data[v] if v in ctx.data else ctx.weight(v).value
        if array is None:
            raise NoSoundRule("a random parameter inside an attention")
        arrays.append(jnp.asarray(array, block.graph.avals[v].dtype))
    return arrays


_PROGRAMS: dict[str, tuple[Any, Any]] = {}
_KEPT = 32


def _compiled(block: Block) -> tuple[Any, Any]:
    """Returns the block and its pullback as compiled programs, shared by equal ones."""
    if block.text not in _PROGRAMS:
        if len(_PROGRAMS) >= _KEPT:
            _PROGRAMS.clear()
        _PROGRAMS[block.text] = _programs(block)
    return _PROGRAMS[block.text]


def _programs(block: Block) -> tuple[Any, Any]:
    part = type(block.graph)(
        (*block.inputs, *block.outside),
        {},
        block.equations,
        (block.output,),
        block.graph.avals,
    )

    @jax.jit
    def run(draws: list[jax.Array], outside: list[jax.Array]) -> jax.Array:
        return jax.lax.map(lambda d: evaluate(part, [*d, *outside])[0], draws)

    @jax.jit
    def pull(
        draws: list[jax.Array], outside: list[jax.Array], seeds: jax.Array
    ) -> tuple[list[jax.Array], list[tuple[jax.Array, jax.Array]]]:
        def one(
            given: tuple[list[jax.Array], jax.Array],
        ) -> tuple[list[jax.Array], list[tuple[jax.Array, jax.Array]]]:
            def shifted(
                signals: list[jax.Array], shifts: dict[int, jax.Array]
            ) -> jax.Array:
                def on_value(v: int, x: Any) -> Any:
                    return x + shifts[v] if v in shifts else x

                return evaluate(part, [*signals, *outside], on_value=on_value)[0]

            avals = block.graph.avals
            zero = {
                v: jnp.zeros(avals[v].shape, avals[v].dtype) for v in block.reported
            }
            signals, seed = given
            _, back = jax.vjp(shifted, signals, zero)
            mine, inside = back(seed)
            wide = [inside[v].astype(jnp.float32) for v in block.reported]
            return mine, [(x.mean(), jnp.square(x).mean()) for x in wide]

        found, inside = jax.lax.map(one, (draws, seeds))
        return found, [(m.mean(), s.mean()) for m, s in inside]

    return run, pull


def _draw_all(
    ctx: RuleContext, block: Block, states: Sequence[State], repeats: int
) -> list[jax.Array]:
    """Returns draws of the block's inputs, ``(repeat, *shape)`` each."""
    drawer = Drawer(ctx, repeats, SEEDS * ctx.group[0])
    return [
        jnp.asarray(drawer.signal(v, state), block.graph.avals[v].dtype)
        for v, state in zip(block.inputs, states, strict=True)
    ]


def _moments(
    ctx: RuleContext, draws: np.ndarray, roles: Sequence[str]
) -> tuple[Field, float]:
    """Returns the moments of draws, ``(repeat, *shape)``, and the standard error."""
    if not np.all(np.isfinite(draws)):
        raise NoSoundRule("results beyond the range of numbers")
    x = _by_position(draws, roles)  # (example, *positions, repeat, channels)
    groups = np.square(x).mean(axis=(*range(x.ndim - 2), -1))
    groups = groups[: len(groups) // 4 * 4].reshape(4, -1).mean(axis=1)
    mean = groups.mean()
    error = groups.std(ddof=1) / 2 / mean if mean > 0 else 0.0
    error /= math.sqrt(ctx.group[1])  # of the mean over all groups
    flat = x.reshape(*x.shape[:-2], -1)
    (_, field) = data.of_array(ctx, flat).parts[0]
    return field.replace(spread=0.0), float(error)


def _by_position(draws: np.ndarray, roles: Sequence[str]) -> np.ndarray:
    """Returns ``(example, *positions, repeat, channels)``."""
    order = [1 + a for role in "bs" for a, r in enumerate(roles) if r == role]
    order += [0] + [1 + a for a, r in enumerate(roles) if r == "c"]
    kept = roles.count("s") + 2
    moved = draws.transpose(order)
    return moved.reshape(*moved.shape[:kept], -1)


def _with_law(
    ctx: RuleContext, field: Field, draws: np.ndarray, roles: Sequence[str]
) -> Field:
    """Returns the field with the law of an entry, and the spread of its square."""
    x = _by_position(draws, roles)
    some = x.ravel()[:: max(1, x.size // 65536)]
    field = field.replace(shape=marginal.of_samples(some))
    squares = np.moveaxis(np.square(x).mean(axis=-1), -1, 0)
    squares = squares.reshape(-1, *field.sizes)  # (repeat and example, *positions)
    total = fluctuation.of_batch(squares, field.lags)
    state = State(tuple(roles), ((_channels(draws, roles), field),))
    return field.replace(spread=fluctuation.beyond_channels(total, state))
