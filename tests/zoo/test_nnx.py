"""NNX twins compute what the Linen modules compute, from the same variables."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from layerwise import zoo
from layerwise.errors import ParametersError, UnsupportedModelError
from layerwise.zoo import nnx as twins
from tests.nn.running import apply, compile_once, constant_he_normal, init


# Name, arguments beside the small ones, whether a call in training mode is compared:
# dropout draws other numbers in NNX.
TWINS = [
    ("f34", {"width": 2}, False),
    ("f50", {"width": 2}, False),
    pytest.param("resnet18", {}, True, marks=pytest.mark.slow),
    ("resnet50", {"depths": (1, 1), "groups": 2}, True),
    ("resnet50", {"depths": (1, 1), "use_norm": False}, False),
    ("vit_b16", {"dropout": 0.1}, False),
]


def build(name, kwargs):
    """Returns the Linen module, and its twin with kernels of zeros."""
    arguments = {**zoo.entry(name).small, **kwargs}
    zeros = nnx.initializers.zeros
    twin = getattr(twins, name)(rngs=nnx.Rngs(0), kernel_init=zeros, **arguments)
    return zoo.create(name, kernel_init=constant_he_normal(), **arguments), twin


@pytest.mark.parametrize(("name", "kwargs", "train"), TWINS)
def test_twin_computes_the_same(name, kwargs, train, key):
    linen, twin = build(name, kwargs)
    x = jax.random.normal(key, (2, *linen.input_shape))
    variables = init(linen, x)
    twins.load(twin, variables)
    assert twin.input_shape == linen.input_shape

    graph, state = nnx.split(twin)
    y = compile_once(lambda s, x: nnx.merge(graph, s)(x))(state, x)
    expected = apply(linen, variables, x)
    # Two programs of up to fifty layers: rounding is all that differs.
    scale = np.abs(expected).max()
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5 * scale)
    if train:
        y = compile_once(lambda s, x: nnx.merge(graph, s)(x, train=True))(state, x)
        outputs = apply(linen, variables, x, train=True, mutable=["batch_stats"])
        np.testing.assert_allclose(y, outputs[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "count"), [("f34", 21_108_362), ("vit_b16", 86_567_656)]
)
def test_twin_has_the_published_count(name, count):
    twin = nnx.eval_shape(lambda: getattr(twins, name)(rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(twin, nnx.Param))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == count


def test_layers_have_names_in_the_program():
    _, twin = build("f34", {"width": 2})
    graph, state = nnx.split(twin)
    x = jnp.zeros((1, *twin.input_shape))
    jaxpr = jax.make_jaxpr(lambda s, x: nnx.merge(graph, s)(x))(state, x)
    scopes = {str(eqn.source_info.name_stack) for eqn in jaxpr.eqns}
    assert {f"Conv_{i}" for i in range(1, 34)} | {"Dense_34"} <= scopes


def test_variables_of_another_network_are_refused():
    linen, _ = build("f34", {"width": 2})
    _, twin = build("f34", {"width": 4})
    variables = init(linen, jnp.zeros((1, *linen.input_shape)))
    with pytest.raises(ParametersError, match=r"no counterpart.*Conv_1/bias"):
        twins.load(twin, variables)


@pytest.mark.parametrize("kwargs", [{"squeeze": 4}, {"last_survival": 0.5}])
def test_what_a_twin_lacks_is_refused(kwargs):
    with pytest.raises(UnsupportedModelError, match="Use the Linen module"):
        twins.resnet18(rngs=nnx.Rngs(0), **kwargs)


def test_the_zoo_does_not_import_nnx():
    import subprocess
    import sys

    code = "import sys, layerwise.zoo; sys.exit('flax.nnx' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
