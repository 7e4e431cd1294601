"""The moments of every site, measured: what predictions are held against.

One program runs a batch of networks forward and backward and returns, per network, the
mean square of every named value and of its cotangent. It runs once or twice, so it is
compiled with little optimization.
"""

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.theory.state import Grade
from layerwise.tracing.graph import evaluate


COMPILER_OPTIONS = {
    "xla_backend_optimization_level": 1,
    "xla_llvm_disable_expensive_passes": True,
}
DIRECTIONS = ("forward", "backward")


def measure(prediction, draw, x, *, draws, seed=0, batch=64):
    """Returns {direction: {value: (draws,)}} of every value the prediction names.

    Args:
        prediction: Says which values, of which program.
        draw: ``key -> params``.
        x: The data.
        draws: Number of networks.
        seed: Of their keys.
        batch: Networks at a time.
    """
    graph = prediction.traced.graph
    values = tuple(dict.fromkeys(s.value for s in prediction.sites))

    def one(key):
        own, signs = jax.random.split(key)
        args = [*jax.tree.leaves(draw(own)), x]

        def loss(shifts):
            seen = {}

            def on_value(v, y):
                if v in shifts:
                    y = y + shifts[v]
                    seen[v] = jnp.mean(jax.lax.stop_gradient(y) ** 2)
                return y

            (out,) = evaluate(graph, args, on_value=on_value)
            sign = jax.random.rademacher(signs, out.shape, out.dtype)
            return jnp.sum(sign * out), seen

        zero = {v: jnp.zeros(graph.avals[v].shape) for v in values}
        back, forward = jax.grad(loss, has_aux=True)(zero)
        return forward, {v: jnp.mean(g**2) for v, g in back.items()}

    keys = jax.random.split(jax.random.key(seed, impl="unsafe_rbg"), draws)
    run = jax.jit(
        lambda k: jax.lax.map(one, k, batch_size=batch),
        compiler_options=COMPILER_OPTIONS,
    )
    got = jax.tree.map(lambda a: np.asarray(a, np.float64), run(keys))
    return dict(zip(DIRECTIONS, got, strict=True))


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
            mean = samples.mean()
            sem = samples.std(ddof=1) / np.sqrt(len(samples))
            tolerance = prediction.tolerance[direction][i]
            predicted = prediction.second[direction][i]
            high = (mean + n_sigma * sem) * np.exp(tolerance) * (1 + 1e-4)
            low = (mean - n_sigma * sem) * np.exp(-tolerance) * (1 - 1e-4)
            if not low <= predicted <= high:
                found.append(
                    f"{direction} {site.kind}{site.layer} {grade.label}: predicted "
                    f"{predicted:.4g}, measured {mean:.4g} ({100 * sem / mean:.1f} % "
                    f"standard error), tolerance {tolerance:.3f}"
                )
    return found
