"""The moments of every site, measured: what predictions are held against.

One program runs a batch of networks forward and backward and returns, per network, the
mean square of every named value and of its cotangent. It runs once or twice, so it is
compiled with little optimization.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.theory.state import Grade
from layerwise.tracing.graph import evaluate, needed_for


COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 1,
    "xla_llvm_disable_expensive_passes": True,
}
DIRECTIONS = ("forward", "backward")


def measure(prediction, draw, x, *, draws, seed=0, batch=64, compiled=True):
    """Returns {direction: {value: (draws,)}} of every value the prediction names.

    Args:
        prediction: Says which values, of which program.
        draw: ``key -> params``.
        x: The data.
        draws: Number of networks.
        seed: Of their keys.
        batch: Networks at a time.
        compiled: Compile the whole program. Otherwise its equations one by one, which
            many small programs have in common, and only for what is claimed.
    """
    values = claimed(prediction)
    if compiled:
        everything = tuple(dict.fromkeys(s.value for s in prediction.sites))
        values = dict.fromkeys(DIRECTIONS, everything)
    one = functools.partial(_moments, prediction.traced.graph, draw, x, values)
    keys = jax.random.split(jax.random.key(seed, impl="unsafe_rbg"), draws)
    if compiled:
        run = jax.jit(
            lambda k: jax.lax.map(one, k, batch_size=batch),
            compiler_options=COMPILER_OPTIONS,
        )
        parts = [run(keys)]
    else:
        parts = [jax.vmap(one)(keys[i : i + batch]) for i in range(0, draws, batch)]
    got = jax.tree.map(lambda *a: np.concatenate(a, dtype=np.float64), *parts)
    squares = ({v: size**2 * q for v, (size, q) in found.items()} for found in got)
    return dict(zip(DIRECTIONS, squares, strict=True))


def claimed(prediction):
    """Returns {direction: the values of which a moment is predicted, not measured}."""
    return {
        d: tuple(
            dict.fromkeys(
                s.value
                for s, grade in zip(prediction.sites, prediction.grade[d], strict=True)
                if grade not in (None, Grade.MEASURED)
            )
        )
        for d in DIRECTIONS
    }


def mean_square(x):
    """Returns (size, mean square of x / size): squares of what is small underflow."""
    size = jnp.clip(jnp.max(jnp.abs(x)), np.finfo(np.float32).tiny, 1.0)
    return size, jnp.mean((x / size) ** 2)


def _moments(graph, draw, x, values, key):
    """Returns the mean squares of values, and of cotangents, in one network."""
    own, signs = jax.random.split(key)
    args = [*jax.tree.leaves(draw(own)), x]
    if not values["backward"]:
        kept = needed_for(graph.equations, values["forward"])
        graph = dataclasses.replace(graph, equations=kept, outputs=())

    def loss(shifts):
        seen = {}

        def on_value(v, y):
            if v in values["forward"]:
                seen[v] = mean_square(jax.lax.stop_gradient(y))
            return y + shifts[v] if v in shifts else y

        outputs = evaluate(graph, args, on_value=on_value)
        total = jnp.zeros(())
        for out in outputs:
            total += jnp.sum(jax.random.rademacher(signs, out.shape, out.dtype) * out)
        return total, seen

    if not values["backward"]:
        return loss({})[1], {}
    zero = {v: jnp.zeros(graph.avals[v].shape) for v in values["backward"]}
    back, forward = jax.grad(loss, has_aux=True)(zero)
    return forward, {v: mean_square(g) for v, g in back.items()}


def misses(prediction, measured, n_sigma=5.0):
    """Returns what is off by more than its tolerance and `n_sigma` standard errors.

    Each is a line that says where, and by how much. What is graded `measured` claims
    nothing, and is not looked at.
    """
    found = []
    for direction in DIRECTIONS:
        for i, site in enumerate(prediction.sites):
            grade = prediction.grade[direction][i]
            if grade in (None, Grade.MEASURED) or site.kind == "input" == direction:
                continue
            samples = measured[direction][site.value]
            if not np.all(np.isfinite(samples)):
                continue  # beyond float32: what is left has no mean to compare with
            mean = samples.mean()
            sem = samples.std(ddof=1) / np.sqrt(len(samples))
            tolerance = prediction.tolerance[direction][i]
            predicted = prediction.second[direction][i]
            with np.errstate(over="ignore"):
                factor = np.exp(tolerance) * (1 + 1e-4)
            high = (mean + n_sigma * sem) * factor
            low = (mean - n_sigma * sem) / factor
            if not low <= predicted <= high:
                found.append(
                    f"{direction} {site.kind}{site.layer} {grade.label}: predicted "
                    f"{predicted:.4g}, measured {mean:.4g} ({100 * sem / mean:.1f} % "
                    f"standard error), tolerance {tolerance:.3f}"
                )
    return found
