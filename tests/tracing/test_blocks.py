import flax.linen as nn
import jax.numpy as jnp
import pytest

import layerwise as lw
from helpers import traced
from layerwise.tracing import as_function, trace
from layerwise.tracing.blocks import blocks, residual_blocks


def small(name):
    entry = lw.zoo.entry(name)
    return traced(entry.constructor(**entry.small))


# name: kind of every block, layers per branch, whether a branch is the entry itself
ZOO = {
    "cifar_resnet": [
        ("add", [2, 0], True),
        ("add", [2, 0], False),  # strided and padded by zeros
        ("add", [2, 0], False),
    ],
    "resnet18": [("add", [2, 0], True), *[("add", [2, 1], False)] * 3],
    "cifar_densenet": [("concat", [0, 1], True)] * 3,
    "highway_mlp": [("gate", [2, 1], False)] * 3,
    "unet": [("concat", [0, 3], False), ("concat", [0, 8], False)],  # cropped
    # Column c joins after 2**c convolutions; what joined before is on its way.
    "fractalnet": [("add", [2, 1], False), ("add", [5, 4, 1], False)] * 2,
    "vgg16": [],
}


@pytest.mark.parametrize("name", ZOO)
def test_finds_the_blocks_of_the_zoo(name):
    found = blocks(small(name))
    got = [
        (b.kind, [len(branch.layers) for branch in b.branches], b.identity)
        for b in found
    ]
    assert sorted(map(str, got)) == sorted(map(str, ZOO[name]))


def test_entry_and_exit_are_those_of_the_program():
    model = small("taki_mlp")
    found = residual_blocks(blocks(model))
    assert [b.entry for b in found[1:]] == [b.exit for b in found[:-1]]
    assert found[0].entry == model.layers[0].z
    for block, layer in zip(found, model.layers[1:-1], strict=True):
        assert block.shortcut is block.branches[0]
        assert block.residuals[0].layers == (layer,)


def test_squeeze_and_excitation_is_a_gate_within_a_residual_block():
    found = blocks(small("se_resnet18"))
    gate, outer = found[0], found[1]
    assert (gate.kind, outer.kind) == ("gate", "add")
    assert gate.identity
    assert set(gate.residuals[0].layers) < set(outer.residuals[0].layers)


def test_sums_of_three_are_one_block_and_multipliers_are_named():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            alpha = self.param("alpha", nn.initializers.zeros, ())
            f = nn.Dense(8, name="f")(nn.relu(x))
            g = nn.Dense(8, name="g")(jnp.tanh(x))
            return nn.Dense(2, name="last")(x + alpha * f - g)

    (block,) = blocks(traced(Net(), (jnp.ones((2, 8)),)))
    assert block.kind == "add"
    assert [[y.path for y in b.layers] for b in block.branches] == [[], ["f"], ["g"]]
    assert [b.multipliers for b in block.branches] == [(), ("alpha",), ()]


def test_blocks_in_a_scan_are_found_once_and_counted():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.Dense(8)(nn.relu(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            stack = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=5,
            )
            return nn.Dense(2)(stack()(nn.Dense(8)(x), None)[0])

    (block,) = blocks(traced(Net(), (jnp.ones((2, 4)),)))
    assert block.kind == "add"
    assert block.identity
    assert block.repeats == 5


def test_two_inputs_that_meet_are_no_block():
    def two(params, x, y):
        return (x @ params["a"] + y @ params["b"]) @ params["c"]

    params = {k: jnp.ones((4, 4)) for k in "abc"}
    function = as_function(two)
    model = trace(function, params, (jnp.ones((2, 4)), jnp.ones((2, 4))))
    assert blocks(model) == ()
