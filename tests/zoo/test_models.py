"""Every architecture of the registry runs: forward, backward, jit, vmap, two dtypes.

One of every class is compiled and run; the slow tests run all of them, in training
too.
"""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from layerwise import zoo
from tests.nn.running import compile_once, constant_he_normal, init


# Architectures of one class differ in numbers only: the first stands for the others.
REPRESENTATIVES = sorted(
    {type(zoo.entry(n).build_small()): n for n in reversed(zoo.names())}.values()
)
# Those that take several seconds to compile.
HEAVY = ("bn_inception", "f50", "fpn_resnet50", "senet154", "stacked_hourglass")
DTYPES = (jnp.float32, jnp.bfloat16)


def loss_and_gradient(model, variables, x, key, *, train):
    """The mean square of all outputs, its gradient, and the outputs."""
    rest = {k: v for k, v in variables.items() if k != "params"}
    takes_train = "train" in inspect.signature(type(model).__call__).parameters
    kwargs = {"train": train} if takes_train else {}

    def loss(params):
        outputs, _ = model.apply(
            {"params": params, **rest},
            x,
            **kwargs,
            rngs={"dropout": key},
            mutable=list(rest),
        )
        outputs = jax.tree.leaves(outputs)
        return sum((y.astype(jnp.float32) ** 2).mean() for y in outputs), outputs

    (value, outputs), gradient = jax.value_and_grad(loss, has_aux=True)(
        variables["params"]
    )
    return value, gradient, outputs


def run(model, key, dtype, *, train):
    """Two draws of the inputs, two examples each, in one compiled call."""
    x = jax.random.normal(key, (2, 2, *model.input_shape), dtype)
    variables = init(model, x[0], key=key)

    def one_draw(x, key):
        return loss_and_gradient(model, variables, x, key, train=train)

    return compile_once(jax.vmap(one_draw))(x, jax.random.split(key))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(n, marks=pytest.mark.slow) if n in HEAVY else n
        for n in REPRESENTATIVES
    ],
)
def test_every_kernel_gets_a_gradient(name, key):
    model = zoo.entry(name).build_small(kernel_init=constant_he_normal())
    value, gradient, _ = run(model, key, jnp.float32, train=False)
    assert np.isfinite(value).all()
    for path, leaf in jax.tree.leaves_with_path(gradient):
        where = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), where
        assert "kernel" not in where or np.abs(leaf).max() > 0, where


@pytest.mark.parametrize("name", REPRESENTATIVES)
def test_bfloat16_stays_bfloat16(name):
    model = zoo.entry(name).build_small(dtype=jnp.bfloat16)
    x = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.bfloat16)
    key = jax.random.key(0)
    variables = jax.eval_shape(model.init, key, x)
    _, gradient, outputs = jax.eval_shape(
        lambda v, x: loss_and_gradient(model, v, x, key, train=True), variables, x
    )
    assert {y.dtype for y in outputs} == {jnp.dtype(jnp.bfloat16)}
    assert {y.shape[0] for y in outputs} == {2}
    assert {g.dtype for g in jax.tree.leaves(gradient)} == {jnp.dtype(jnp.float32)}


@pytest.mark.slow
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("name", zoo.names())
def test_runs_finite(name, dtype, train, key):
    model = zoo.entry(name).build_small(dtype=dtype, kernel_init=constant_he_normal())
    value, gradient, outputs = run(model, key, dtype, train=train)
    assert np.isfinite(value).all()
    assert {y.dtype for y in outputs} == {jnp.dtype(dtype)}
    finite = jax.tree.map(lambda g: bool(jnp.isfinite(g).all()), gradient)
    assert jax.tree.all(finite)


@pytest.mark.parametrize(
    ("name", "depth"), [("f34", 34), ("mlp", 3), ("vgg16", 16), ("highway_mlp", 5)]
)
def test_one_initializer_per_weight_layer_in_forward_order(name, depth):
    used = []

    def numbered(number):
        def initializer(key, shape, dtype=jnp.float32):
            used.append(number)
            return jnp.full(shape, number, dtype)

        return initializer

    inits = tuple(numbered(n) for n in range(depth))
    model = zoo.entry(name).build_small(kernel_init=inits)
    inputs = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    jax.eval_shape(model.init, jax.random.key(0), inputs)
    assert list(dict.fromkeys(used)) == list(range(depth))
