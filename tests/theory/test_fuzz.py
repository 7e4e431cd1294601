"""Random architectures: each prediction holds, or says that it was measured.

Hypothesis draws depth, widths, operations and graph; 160 networks are run for each.
What is graded `exact` must agree within 5 standard errors. What is graded
`approximate` is right as width grows: 16 channels and maps of at most 8 pixels allow
10 % a layer forward and 15 % backward (the first law is that nothing is off by more and
does not say so). What is graded `measured` claims nothing.
"""

import flax.linen as nn
import jax
import numpy as np
from hypothesis import HealthCheck, given, settings, strategies as st

from layerwise.theory.predict import predict
from layerwise.theory.state import Grade
from layerwise.tracing import as_function
from layerwise.tracing.graph import evaluate


DRAWS = 160
OPS = ("conv", "strided", "pointwise", "residual", "concat", "max", "average", "gate")
ACTS = ("relu", "tanh", "leaky_relu", "gelu")


class Random(nn.Module):
    ops: tuple
    act: str
    width: int

    @nn.compact
    def __call__(self, x):
        act = getattr(nn, self.act)

        def conv(x, stride=1, kernel=3):
            init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
            return nn.Conv(
                self.width, (kernel, kernel), (stride, stride), kernel_init=init
            )(x)

        x = conv(x)
        for op in self.ops:
            match op:
                case "conv":
                    x = conv(act(x))
                case "strided":
                    x = conv(act(x), 2)
                case "pointwise":
                    x = conv(act(x), kernel=1)
                case "residual":
                    x = x + conv(act(x))
                case "concat":
                    y = act(x)
                    x = conv(jax.numpy.concatenate([conv(y), conv(y, kernel=1)], -1))
                case "max" if x.shape[1] > 2:
                    x = conv(nn.max_pool(act(x), (2, 2), (2, 2)))
                case "average" if x.shape[1] > 2:
                    x = conv(nn.avg_pool(act(x), (2, 2), (2, 2)))
                case "gate":
                    x = conv(x) * nn.sigmoid(conv(act(x), kernel=1))
                    x = conv(x)
        x = act(x).mean((1, 2))
        return nn.Dense(4)(x)


def measured(prediction, model, x, key):
    """Second moments per draw of every value named by the prediction."""
    function, traced = as_function(model), prediction.traced
    values = tuple(dict.fromkeys(s.value for s in prediction.sites))
    avals = traced.graph.avals
    assert function.init is not None
    init = function.init

    def one(key):
        params = init(key, x)
        args = [*jax.tree.leaves(params), x]
        seen = {}

        def loss(shifts):
            def on_value(v, y):
                if v in shifts:
                    y = y + shifts[v]
                    seen[v] = (jax.lax.stop_gradient(y) ** 2).mean()
                return y

            (out,) = evaluate(traced.graph, args, on_value=on_value)
            signs = jax.random.rademacher(
                jax.random.fold_in(key, 1), out.shape, out.dtype
            )
            return (signs * out).sum(), dict(seen)

        zero = {v: jax.numpy.zeros(avals[v].shape) for v in values}
        back, forward = jax.grad(loss, has_aux=True)(zero)
        return forward, {v: (g**2).mean() for v, g in back.items()}

    run = jax.jit(lambda k: jax.lax.map(one, k, batch_size=16))
    return run(jax.random.split(key, DRAWS))


def check(ops, act, width, seed):
    model = Random(tuple(ops), act, width)
    x = jax.random.normal(jax.random.key(seed), (2, 8, 8, 3)) + 0.2
    prediction = predict(model, None, x)
    forward, backward = measured(prediction, model, x, jax.random.key(seed + 1))
    for direction, got in (("forward", forward), ("backward", backward)):
        allowed = {"forward": 0.10, "backward": 0.15}[direction]
        depth = len(prediction.layer_paths)
        for i, site in enumerate(prediction.sites):
            grade = prediction.grade[direction][i]
            if grade in (None, Grade.MEASURED) or site.kind == "input":
                continue
            samples = np.asarray(got[site.value], np.float64)
            mean, sem = samples.mean(), samples.std(ddof=1) / np.sqrt(DRAWS)
            layers = site.layer if direction == "forward" else depth - site.layer + 1
            slack = 0.0 if grade is Grade.EXACT else allowed * layers * mean
            gap = abs(prediction.second[direction][i] - mean)
            assert gap <= 5 * sem + slack + 1e-5 * mean, (
                direction,
                site,
                grade,
                prediction.second[direction][i],
                mean,
                sem,
            )


architectures = given(
    ops=st.lists(st.sampled_from(OPS), min_size=1, max_size=5),
    act=st.sampled_from(ACTS),
    width=st.sampled_from([12, 16, 24]),
    seed=st.integers(0, 100),
)
quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]


@architectures
@settings(max_examples=4, suppress_health_check=quiet)
def test_random_architectures(ops, act, width, seed):
    check(ops, act, width, seed)
