import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import layerwise as lw


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(3)(x)


model = Net()
X = jax.random.normal(jax.random.key(0), (8, 16))
LABELS = jnp.arange(8) % 3


def loss_fn(params, batch):
    logits = model.apply(params, batch["x"])
    assert isinstance(logits, jax.Array)
    picked = jnp.take_along_axis(nn.log_softmax(logits), batch["y"][:, None], 1)
    return -jnp.mean(picked)


BATCH = {"x": X, "y": LABELS}


@pytest.fixture(scope="module")
def params():
    return model.init(jax.random.key(1), X)


def test_it_is_value_and_grad_and_sees_every_third_step(params, tmp_path):
    step = lw.monitor(loss_fn, every=3, log=tmp_path)
    expected = jax.value_and_grad(loss_fn)(params, BATCH)
    for _ in range(7):
        got = step(params, BATCH)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), got, expected)
    assert [s.step for s in step.snapshots] == [0, 3, 6]
    assert step.snapshots[0].loss == pytest.approx(float(expected[0]), rel=1e-5)
    assert 0 < step.overhead < 1
    lines = (tmp_path / "layers.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 3, 6]
    named = json.loads(lines[0])["root_mean_square"]
    assert named["forward/001 Dense_0/u"] > 0
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_the_report_is_of_one_network(params):
    """It is that network which is judged, not an ensemble that it is a sample of."""
    report = lw.monitor(loss_fn).look(params, BATCH).report()
    assert report.notes()[0] == "one network, the parameters of step 0"
    assert not any("interrupted" in note for note in report.notes())
    found = report.diagnose()
    assert found.verdict == "healthy", str(found)
    assert found.basis.startswith("this network alone")
    broken = jax.tree.map(lambda x: x * jnp.inf, params)
    report = lw.monitor(loss_fn).look(broken, BATCH).report()
    assert "not finite, first forward at Dense_0" in report.notes()[1]
    assert report.diagnose().verdict == "sick"


def test_the_numbers_are_those_of_the_loss(params):
    """By hand: the pre-activations of the first layer, and their gradients."""
    seen = lw.monitor(loss_fn).look(params, BATCH)
    m = seen.measurement
    kernel, bias = (params["params"]["Dense_0"][n] for n in ("kernel", "bias"))

    def rest(u):
        z = nn.relu(u)
        for i in (1, 2, 3):
            p = params["params"][f"Dense_{i}"]
            u = z @ p["kernel"] + p["bias"]
            z = nn.relu(u)
        picked = jnp.take_along_axis(nn.log_softmax(u), LABELS[:, None], 1)
        return -jnp.mean(picked)

    u = X @ kernel + bias
    at = m.find("u", 1)
    forward, backward = (m.second_moment(d)[0, at] for d in ("forward", "backward"))
    assert forward == pytest.approx(float(jnp.mean(u**2)), rel=1e-4)
    assert backward == pytest.approx(float(jnp.mean(jax.grad(rest)(u) ** 2)), rel=1e-4)
    assert "Dense_3" in str(seen.report())


def test_nonfinite_names_the_layer_and_the_direction(params):
    broken = jax.tree.map(lambda x: x, params)
    broken["params"]["Dense_1"]["kernel"] = jnp.full((16, 16), 1e30)
    broken["params"]["Dense_2"]["kernel"] = jnp.full((16, 16), 1e30)
    step = lw.monitor(loss_fn, stop_on_nonfinite=True)
    with pytest.raises(FloatingPointError, match=r"first forward at Dense_[12]"):
        step(broken, BATCH)

    @jax.custom_vjp
    def bad(x):
        return x

    bad.defvjp(lambda x: (x, None), lambda _, g: (g * jnp.nan,))

    def backward_only(p, batch):
        x = nn.relu(batch["x"] @ p["a"])
        return jnp.mean((bad(x @ p["b"]) @ p["c"]) ** 2)

    weights = {k: jax.random.normal(jax.random.key(2), (16, 16)) for k in "abc"}
    seen = lw.monitor(backward_only).look(weights, BATCH)
    assert seen.nonfinite.startswith("backward at b")


class NnxNet(nnx.Module):
    """Running statistics and a stream of random numbers beside the weights."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(2)])
        self.norm = nnx.BatchNorm(16, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(16, 3, rngs=rngs)

    def __call__(self, x):
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return self.head(self.dropout(self.norm(x)))


def nnx_loss(net: NnxNet, x: jax.Array, y: jax.Array) -> jax.Array:
    picked = jnp.take_along_axis(nnx.log_softmax(net(x)), y[:, None], 1)
    return -jnp.mean(picked)


def test_an_nnx_module_trains_under_it_as_without():
    watched, plain = NnxNet(nnx.Rngs(0)), NnxNet(nnx.Rngs(0))
    step = lw.monitor(nnx_loss, every=2)
    without = nnx.jit(nnx.value_and_grad(nnx_loss))
    losses = []
    for net, gradient in ((watched, step), (plain, without)):
        optimizer = nnx.Optimizer(net, optax.sgd(0.1), wrt=nnx.Param)
        for _ in range(3):
            loss, gradients = gradient(net, X, LABELS)
            optimizer.update(net, gradients)
            losses.append(float(loss))
    assert losses[:3] == losses[3:]
    assert losses[2] < losses[0]
    for a, b in zip(*(jax.tree.leaves(nnx.state(n)) for n in (watched, plain)),
                    strict=True):  # fmt: skip
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)
    assert [s.step for s in step.snapshots] == [0, 2]
    assert step.snapshots[1].loss == pytest.approx(losses[2], rel=1e-5)
    assert step.last is not None
    assert step.last.measurement.layer_paths == ("hidden/0", "hidden/1", "head")


def test_every_must_count():
    with pytest.raises(lw.errors.InvalidArgumentError, match="every=100"):
        lw.monitor(loss_fn, every=0)
