"""The claims about trained networks share these runs: digits, small widths, minutes."""

import functools
from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import layerwise as lw
from experiments.training import Data, digits, error_rate, train
from layerwise.tracing import TracedModel, trace
from layerwise.tracing.blocks import blocks, residual_blocks
from layerwise.tracing.graph import evaluate
from layerwise.tracing.prepare import prepare


STEPS = 300
BLOCK = "ResidualBlock_"


def _resnet(depth: int, *, residual: bool) -> nn.Module:
    return lw.zoo.cifar_resnet(
        depth=depth, width=8, image_size=8, shortcut="pad" if residual else "none"
    )


@functools.cache
def images(size: int = 8) -> Data:
    """Returns the digits as three equal channels."""
    return digits(size, channels=3)


@functools.cache
def _trained(
    depth: int, residual: bool, seed: int
) -> tuple[nn.Module, dict, np.ndarray]:
    model = _resnet(depth, residual=residual)
    start, order = jax.random.split(jax.random.key(seed))
    variables = model.init(start, jnp.asarray(images().x[:2]))
    got = train(model, variables, images(), steps=STEPS, learning_rate=0.05, key=order)
    return model, got.variables, got.losses


def _traced(model: nn.Module, variables: dict) -> tuple[TracedModel, list]:
    ready = prepare(model, variables, jnp.asarray(images().x_test))
    return trace(ready.model, variables, ready.inputs), jax.tree.leaves(variables)


def _error(traced: TracedModel, leaves: list, bypass: tuple[int, int] | None) -> float:
    """Returns the test error with one value put in the place of a later one."""

    def run(x: jax.Array) -> jax.Array:
        kept: dict[int, jax.Array] = {}

        def replace(value: int, array: jax.Array) -> jax.Array:
            if bypass is not None and value == bypass[1]:
                return kept[bypass[0]]
            if bypass is not None and value == bypass[0]:
                kept[value] = array
            return array

        return evaluate(traced.graph, (*leaves, x), on_value=replace)[0]

    out = jax.jit(run)(jnp.asarray(images().x_test))
    return float((np.asarray(out).argmax(-1) != images().y_test).mean())


def lesion_errors() -> tuple[list[float], list[float]]:
    """Returns test errors of a residual and a plain net: whole, then one part deleted.

    A residual block is replaced by its shortcut, a plain layer by its input where the
    shapes agree.
    """
    model, variables, _ = _trained(20, True, 0)
    traced, leaves = _traced(model, variables)
    found = residual_blocks(blocks(traced))
    cuts = [(b.shortcut.end, b.exit) for b in found if b.shortcut is not None]
    residual = [_error(traced, leaves, None)]
    residual += [_error(traced, leaves, cut) for cut in cuts]

    model, variables, _ = _trained(20, False, 0)
    traced, leaves = _traced(model, variables)
    avals = traced.graph.avals
    cuts = [
        (y.operand, y.z)
        for y in traced.layers[1:]
        if avals[y.operand].shape == avals[y.z].shape
    ]
    plain = [_error(traced, leaves, None)]
    plain += [_error(traced, leaves, cut) for cut in cuts]
    return residual, plain


def shuffle_errors() -> tuple[float, list[float]]:
    """Returns the test error of a residual net, and with two like blocks swapped."""
    model, variables, _ = _trained(20, True, 0)
    names = [n for n in variables["params"] if n.startswith(BLOCK)]
    shapes = {n: jax.tree.map(jnp.shape, variables["params"][n]) for n in names}
    errors = []
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if shapes[a] == shapes[b]:
                errors.append(_apply_error(model, _swapped(variables, a, b)))
    return _apply_error(model, variables), errors


def _swapped(variables: dict, a: str, b: str) -> dict:
    swap = {a: b, b: a}
    return {
        kind: {n: tree[swap.get(n, n)] for n in tree}
        for kind, tree in variables.items()
    }


def _apply_error(model: nn.Module, variables: dict) -> float:
    return error_rate(model, variables, images())


def _last_loss(losses: np.ndarray) -> float:
    return float(losses[-50:].mean())


@functools.cache
def degradation() -> dict[str, tuple[list[float], list[float]]]:
    """Returns training losses (last 50 steps) of 20 and 56 layers, three seeds each."""
    table: dict[str, tuple[list[float], list[float]]] = {}
    for name, residual in (("plain", False), ("residual", True)):
        shallow, deep = (
            [_last_loss(_trained(depth, residual, seed)[2]) for seed in range(3)]
            for depth in (20, 56)
        )
        table[name] = shallow, deep
    return table


def f34_errors(schemes: Iterable[str]) -> dict[str, float]:
    """Returns F34's test error at 32 pixels after 600 steps, by scheme."""
    model, data, errors = lw.zoo.f34(width=16, image_size=32), images(32), {}
    for scheme in schemes:
        start, order = jax.random.split(jax.random.key(0))
        variables = lw.initialize(model, jnp.asarray(data.x[:2]), start, scheme)
        got = train(model, variables, data, steps=600, learning_rate=1e-3, key=order)
        errors[scheme] = error_rate(model, got.variables, data)
    return errors


def hundred_blocks() -> dict[str, dict[float, float]]:
    """Returns the last training loss by scheme and rate; NaN where it diverged."""
    data = digits(flat=True)
    plain = lw.zoo.taki_mlp(input_shape=(64,))
    normal = lw.zoo.taki_mlp(input_shape=(64,), use_norm=True)
    x = jnp.asarray(data.x[:8])
    table: dict[str, dict[float, float]] = {}
    for name, model, scheme in (
        ("he", plain, "kaiming_fan_in"),
        ("c/(nL)", plain, "taki"),
        ("BN", normal, "kaiming_fan_in"),
    ):
        params = lw.initialize(model, x, jax.random.key(0), scheme)
        table[name] = {}
        for rate in (0.1, 0.01, 0.001):
            got = train(
                model,
                params,
                data,
                steps=STEPS,
                learning_rate=rate,
                key=jax.random.key(1),
            )
            table[name][rate] = float(got.losses[-20:].mean())
    return table


def final_losses(widths: Iterable[int], seeds: int = 10) -> list[list[float]]:
    """Returns the final training loss of small nets, by width and seed."""
    data = digits(flat=True)
    found = []
    for width in widths:
        model = lw.zoo.mlp(input_shape=(64,), widths=(width, width))
        losses = []
        for seed in range(seeds):
            start, order = jax.random.split(jax.random.key(seed))
            variables = model.init(start, jnp.asarray(data.x[:2]))
            got = train(
                model, variables, data, steps=STEPS, learning_rate=0.05, key=order
            )
            losses.append(float(got.losses[-20:].mean()))
        found.append(losses)
    return found
