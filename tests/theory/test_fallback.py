"""What has no rule is sampled, says so, and never crashes: forward or backward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Primitive  # noqa: TID251 (as a user makes one)
from jax.interpreters import ad, mlir  # noqa: TID251

import layerwise as lw
from helpers import assert_mean_close
from layerwise.theory import registry
from layerwise.theory.state import Grade


KEYS = jax.random.split(jax.random.key(5), 2)
PARAMS = {
    n: jax.random.normal(k, (32, 32)) / 6 for n, k in zip("ab", KEYS, strict=True)
}
ROWS = jax.random.normal(jax.random.key(6), (4, 32))


def between(function):
    """A layer, something, a layer."""

    def model(p, x):
        return function(x @ p["a"]) @ p["b"]

    return model


def grades(prediction, layer):
    at = prediction.find("u", layer)
    return tuple(prediction.grade[d][at] for d in ("forward", "backward"))


def test_an_unknown_primitive_is_named_with_its_line_and_layer():
    got = lw.predict(between(lambda u: jnp.sort(u, axis=-1)), PARAMS, ROWS, draws=32)
    assert grades(got, 1) == (Grade.EXACT, Grade.MEASURED)
    assert grades(got, 2) == (Grade.MEASURED, Grade.EXACT)
    ((label, reason),) = got.sampled.items()
    assert label.startswith("sort at ")
    assert "test_fallback.py" in label
    assert label.endswith(", behind a")
    assert reason == 'no rule; @layerwise.rule("sort") adds one'
    # Sorting keeps every square, forward and backward.
    second = {d: got.second[d] for d in ("forward", "backward")}
    q_1 = second["forward"][got.find("u", 1)]
    norm = float(jnp.mean(PARAMS["b"] ** 2)) * 32
    assert second["forward"][got.find("u", 2)] == pytest.approx(q_1 * norm, rel=0.1)
    assert second["backward"][got.find("u", 1)] == pytest.approx(norm, rel=0.1)


def test_channels_that_become_positions_are_sampled_not_an_error():
    """The decoder of an autoencoder: a dense layer's channels, laid out as a map."""
    params = {"a": PARAMS["a"], "b": jax.random.normal(KEYS[0], (3, 4, 8)) / 3}

    def decode(p, x):
        y = (x @ p["a"]).reshape(4, 8, 4)
        return jax.lax.conv_general_dilated(
            y, p["b"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )

    got = lw.predict(decode, params, ROWS, draws=4)
    assert grades(got, 1) == (Grade.EXACT, Grade.MEASURED)
    assert list(got.sampled.values()) == ["a convolution along channels"]


def test_what_has_no_derivative_leaves_the_backward_numbers_empty():
    twice = _primitive("twice_without_derivative")
    got = lw.predict(between(lambda u: twice.bind(u)), PARAMS, ROWS, draws=8)
    at = got.find("u", 1)
    assert np.isnan(got.second["backward"][at])
    assert got.grade["backward"][at] is None
    (reason,) = got.sampled.values()
    assert "no derivative" in reason
    q_2 = got.second["forward"][got.find("u", 2)]
    assert grades(got, 2)[0] is Grade.MEASURED
    assert q_2 > 0


@pytest.mark.parametrize("with_backward", [True, False])
def test_a_rule_of_ones_own_works_end_to_end(with_backward):
    name = f"doubling_{with_backward}"
    double = _primitive(name, derivative=True)

    class Forward:
        """Doubles its operand: second moments times four."""

        @staticmethod
        def forward(ctx, node, states):
            return states[0].map(lambda f: f.scaled(4.0))

    class Both(Forward):
        """The same, and backward."""

        @staticmethod
        def backward(ctx, node, states, out, cotangent):
            return [cotangent.map(lambda f: f.scaled(4.0))]

    lw.rule(name)(Both if with_backward else Forward)
    try:
        got = lw.predict(between(lambda u: double.bind(u)), PARAMS, ROWS, draws=32)
        plain = lw.predict(between(lambda u: 2.0 * u), PARAMS, ROWS)
    finally:
        registry.unregister(name)
    first, second = got.find("u", 1), got.find("u", 2)
    assert grades(got, 2) == (Grade.EXACT, Grade.EXACT)
    assert got.second["forward"][second] == pytest.approx(
        plain.second["forward"][plain.find("u", 2)], rel=1e-6
    )
    back = plain.second["backward"][plain.find("u", 1)]
    if with_backward:
        assert got.grade["backward"][first] is Grade.EXACT
        assert got.second["backward"][first] == pytest.approx(back, rel=1e-6)
        assert not got.sampled
    else:
        assert got.grade["backward"][first] is Grade.MEASURED
        assert got.second["backward"][first] == pytest.approx(back, rel=0.1)
        assert "no backward method" in got.coverage or got.sampled


def _primitive(name, derivative=False):
    """A primitive that doubles, unknown to everyone."""
    made = Primitive(name)
    made.def_impl(lambda x: 2.0 * x)
    made.def_abstract_eval(lambda x: x)
    mlir.register_lowering(made, mlir.lower_fun(lambda x: 2.0 * x, False))
    if derivative:
        ad.deflinear2(made, lambda ct, _: [2.0 * ct])
    return made


@pytest.mark.slow
def test_a_dense_net_is_predicted_where_maps_of_two_sizes_meet():
    """Cotangents of two map sizes meet in one response, which raised once."""
    model = lw.zoo.entry("cifar_densenet").build_small()
    x = jax.random.normal(jax.random.key(0), (4, *model.input_shape))
    found = lw.predict(model, None, x, draws=8)
    assert np.isfinite(found.curve("backward")).all()
    assert not found.sampled


def test_a_sum_that_cancels_is_sampled_but_its_cotangent_is_not():
    """The mean of a batch that was normalized, of examples that are unlike."""

    class Squeeze(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.Conv(16, (3, 3))(nn.relu(x))
                x = nn.BatchNorm(use_running_average=False)(x)
            return nn.Dense(4)(x.mean((1, 2)))

    noise, size = (jax.random.normal(k, (4, 8, 8, 3)) for k in KEYS)
    x = noise * (0.2 + size[:, :1, :1, :1] ** 2)
    by_rule, got = (lw.predict(Squeeze(), None, x, draws=n) for n in (0, 48))
    at = got.find("u", 3)
    assert by_rule.grade["forward"][at] is Grade.APPROXIMATE
    assert by_rule.tolerance["forward"][at] > 0.65
    assert got.grade["forward"][at] is Grade.MEASURED
    assert any("cancels" in reason for reason in got.sampled.values())
    normalized = got.find("z", 2)
    assert got.grade["backward"][normalized] is Grade.APPROXIMATE
    second = [p.second["backward"][normalized] for p in (by_rule, got)]
    assert second[0] == second[1]
    measured = lw.measure(Squeeze(), None, x, draws=64, key=KEYS[0])
    assert_mean_close(
        measured.second_moment("forward")[:, at],
        got.second["forward"][at],
        bias=0.1 * got.second["forward"][at],  # 48 networks
    )
