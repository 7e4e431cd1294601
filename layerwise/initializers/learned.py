r"""Scales that are learned before training: MetaInit and GradInit, as baselines.

Both leave directions as they were drawn and learn one scale for each weight leaf, by
gradient descent on a quantity of the whole network at its initialization. What comes
back is the best of what the descent visited: neither quantity is smooth.

``metainit``
    The gradient quotient :math:`\frac1N \sum |1 - (g - H g)/(g + \epsilon)|`: how much
    a gradient step changes the gradient. Needs no labels: inputs are taken as given and
    targets are drawn.
``gradinit``
    The loss after one step of length `rate` along the gradient's signs, with the L1
    norm of the gradient held below a bound.

The loss is cross entropy with random classes where the output has a row of logits for
each example, unless one is given. These are heuristics of the network drawn: nothing
is promised for a layer, and the cost is some dozens of training steps.

References:
    [Dauphin2019] eq. (3) and algorithm 1; [Zhu2021] algorithm 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from layerwise.initializers.registry import (
    FEATURES,
    Assignment,
    Problem,
    Scheme,
    register,
)
from layerwise.initializers.weights import weights
from layerwise.tracing.model import leaf_name
from layerwise.types import PyTree


Loss = Callable[[PyTree], jax.Array]
Objective = Callable[[Loss, PyTree], jax.Array]

_RATE = 0.02  # of the logarithm of a scale, for Adam


def gradient_quotient(loss: Loss, params: PyTree) -> jax.Array:
    """Returns how much the gradient changes along itself, per parameter.

    For a quadratic loss the mean curvature. Above 1 a gradient step changes the
    gradient by more than the gradient.

    Args:
        loss: Function of the parameters.
        params: Where it is taken.

    References:
        [Dauphin2019] eq. (3).
    """
    gradient = jax.grad(loss)
    g, change = jax.jvp(gradient, (params,), (gradient(params),))
    total, count = jnp.zeros(()), 0
    for h, x in zip(jax.tree.leaves(change), jax.tree.leaves(g), strict=True):
        away = jnp.where(x >= 0.0, 1e-5, -1e-5)  # from zero
        total += jnp.sum(jnp.abs(h / (x + away)))
        count += x.size
    return total / count


def loss_after_a_step(
    loss: Loss, params: PyTree, *, rate: float = 1e-2, bound: float = 1.0
) -> jax.Array:
    """Returns the loss after one sign step, or the gradient's norm where it is large.

    Args:
        loss: Function of the parameters.
        params: Where the step starts.
        rate: Length of the step, in each parameter.
        bound: L1 norm of the gradient times `rate`, above which that is what is made
            smaller first.

    References:
        [Zhu2021] eq. (1), for Adam.
    """
    g = jax.grad(loss)(params)
    norm = rate * sum(jnp.sum(jnp.abs(x)) for x in jax.tree.leaves(g))
    stepped = jax.tree.map(lambda p, x: p - rate * jnp.sign(x), params, g)
    return jnp.where(norm > bound, norm, loss(stepped))


_OBJECTIVES: dict[str, Objective] = {
    "metainit": gradient_quotient,
    "gradinit": loss_after_a_step,
}


def _solve(name: str, problem: Problem) -> Assignment:
    variances: dict[str, float] = {}
    scaled = set()
    for w in weights(problem.traced):
        variances.setdefault(w.path, 1.0 if w.lookup else 2.0 / w.fan_in)
        if w.leaf is not None and w.linear:
            scaled.add(w.leaf)
    steps = int(problem.options.get("steps", 50))
    loss = problem.options.get("loss") or _random_classes
    model, inputs = problem.traced.model, problem.inputs
    names = sorted(scaled)

    def adjust(params: PyTree) -> PyTree:
        import optax

        def with_scales(logs: jax.Array) -> PyTree:
            table = dict(zip(names, jnp.exp(logs), strict=True))

            def scale(path: Any, x: jax.Array) -> jax.Array:
                s = table.get(leaf_name(path))
                return x if s is None else (x * s).astype(x.dtype)

            return jax.tree_util.tree_map_with_path(scale, params)

        def objective(logs: jax.Array) -> jax.Array:
            tree = with_scales(logs)
            floating = {
                leaf_name(p): x
                for p, x in jax.tree_util.tree_flatten_with_path(tree)[0]
                if jnp.issubdtype(x.dtype, jnp.floating)
            }

            def of_floating(leaves: dict[str, jax.Array]) -> jax.Array:
                whole = jax.tree_util.tree_map_with_path(
                    lambda p, x: leaves.get(leaf_name(p), x), tree
                )
                return loss(model.apply(whole, *inputs))

            return _OBJECTIVES[name](of_floating, floating)

        optimizer = optax.adam(_RATE)

        def step(state: Any, _: None) -> tuple[Any, None]:
            logs, moments, best, lowest = state
            value, gradient = jax.value_and_grad(objective)(logs)
            best = jnp.where(value < lowest, logs, best)
            lowest = jnp.where(value < lowest, value, lowest)
            update, moments = optimizer.update(jnp.nan_to_num(gradient), moments)
            return (logs + update, moments, best, lowest), None

        start = jnp.zeros(len(names))
        state = (start, optimizer.init(start), start, jnp.inf)
        (_, _, best, _), _ = jax.lax.scan(step, state, length=steps)
        return with_scales(best)

    return Assignment(variances, adjust=adjust, exact=False)


def _random_classes(output: PyTree) -> jax.Array:
    """Cross entropy with one class drawn for each row of the first output."""
    logits = jnp.asarray(jax.tree.leaves(output)[0], jnp.float32)
    rows = logits.reshape(-1, logits.shape[-1])
    classes = jax.random.randint(jax.random.key(0), rows.shape[:1], 0, rows.shape[1])
    chosen = jnp.take_along_axis(jax.nn.log_softmax(rows), classes[:, None], axis=1)
    return -jnp.mean(chosen)


def _register(name: str, preserves: str, source: str) -> None:
    register(
        Scheme(
            name,
            lambda problem: _solve(name, problem),
            needs="a batch, a loss",
            preserves=preserves,
            supports=FEATURES,
            source=source,
            options=("loss", "steps"),
        )
    )


_register("metainit", "nothing by layer; small curvature", "[Dauphin2019]")
_register("gradinit", "nothing by layer; a fast first step", "[Zhu2021]")
