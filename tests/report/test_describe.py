import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import layerwise as lw


RESIDUAL = ["cifar_resnet", "resnet18", "cifar_resnext", "wide_resnet", "pyramidnet"]
RESIDUAL += ["vit_ti16", "stacked_hourglass", "mixer_s16", "convnext_t", "ror3"]
RESIDUAL += ["se_resnet18", "preresnet", "stochastic_depth_resnet", "taki_mlp"]
SKIP = ["cifar_densenet", "cifar_densenet_bc", "highway_mlp", "highway_cnn", "unet"]
SKIP += ["fpn_resnet50"]
NEITHER = ["vgg16", "alexnet_2014", "googlenet", "bn_inception", "f34", "mlp"]
NEITHER += ["fractalnet", "inception_v3", "cifar_plain"]
KINDS = {
    **dict.fromkeys(RESIDUAL, "residual"),
    **dict.fromkeys(SKIP, "skip"),
    **dict.fromkeys(NEITHER, "neither"),
}


@pytest.mark.parametrize("name", KINDS)
def test_connections_of_the_zoo(name):
    assert lw.describe(lw.zoo.entry(name).build_small()).connections == KINDS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_connections_of_the_zoo_at_published_size(name):
    assert lw.describe(lw.zoo.entry(name).build()).connections == KINDS[name]


@pytest.mark.parametrize(
    ("name", "kwargs", "paths"),
    [
        ("cifar_resnet", {"depth": 110}, 2**54),
        ("vit_ti16", {}, 2**24),
        ("vgg16", {}, 1),
        pytest.param("bn_inception", {}, 4**8 * 3**2, marks=pytest.mark.slow),
    ],
)
def test_paths_of_the_zoo(name, kwargs, paths):
    assert lw.describe(lw.zoo.create(name, **kwargs)).paths == paths


def test_facts_of_a_layer():
    found = lw.describe(lw.zoo.vgg16())
    assert found.parameters == 138_357_544  # torchvision's
    assert sum(y.parameters for y in found.layers) == found.parameters
    second = found.layers[1]
    assert second.shape[1:] == (224, 224, 64)
    assert second.fan_in == 9 * 64
    assert second.flops == 2 * found.batch * 224 * 224 * 64 * 9 * 64
    assert second.receptive_field == (5, 5)
    assert second.follows == ("pointwise", "max_pool")
    # 15.47 billion multiplications, 30.94 billion operations an image [Simonyan2015]
    assert found.flops / found.batch == pytest.approx(30.94e9, rel=1e-3)
    assert sum(y.flops for y in found.layers) == found.flops


def test_running_statistics_are_no_parameters():
    assert lw.describe(lw.zoo.cifar_resnet()).parameters == 269_722


def test_attention_scores_cost_as_much_as_their_product():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.MultiHeadDotProductAttention(num_heads=2)(x)

    found = lw.describe(Model(), jnp.ones((3, 10, 8)))
    layers = 4 * 2 * 10 * 8 * 8
    scores = 2 * 2 * 10 * 10 * 8
    assert found.flops == 3 * (layers + scores)


def test_loops_count_as_often_as_they_run():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.RNN(nn.SimpleCell(4))(x)

    found = lw.describe(Model(), jnp.ones((2, 6, 3)))
    assert found.flops == 6 * 2 * 2 * (3 * 4 + 4 * 4)


@pytest.mark.parametrize("alone", [True, False])
def test_a_lone_sum_around_an_encoder_decoder_is_a_long_skip(alone):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            for _ in range(1 if alone else 3):
                y = nn.Conv(4, (3, 3), strides=2)(x)
                y = y + nn.Conv(4, (3, 3))(nn.relu(y))
                x = x + nn.ConvTranspose(4, (2, 2), strides=(2, 2))(y)
            return nn.Dense(3)(x)

    found = lw.describe(Model(), jnp.ones((1, 16, 16, 4)))
    assert found.connections == ("skip" if alone else "residual")


def test_prints_a_table():
    found = lw.describe(lw.zoo.entry("resnet18").build_small())
    assert "connections residual" in str(found)
    assert "<table>" in found._repr_html_()
    assert list(found.to_frame()["index"]) == list(range(1, len(found.layers) + 1))


def test_a_function_needs_its_parameters():
    def apply(params, x):
        return jax.nn.relu(x @ params["w"])

    params = {"w": jnp.ones((5, 2))}
    assert lw.describe(apply, jnp.ones((3, 5)), params=params).parameters == 10
    with pytest.raises(lw.errors.InvalidArgumentError, match="params"):
        lw.describe(apply, jnp.ones((3, 5)))


def test_text_is_plain_and_fits(monkeypatch):
    """Kernels of notebooks set FORCE_COLOR; a narrow terminal goes without columns."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    found = lw.describe(lw.zoo.entry("resnet18").build_small())
    for columns in (60, 80, 160):
        monkeypatch.setenv("COLUMNS", str(columns))
        text = str(found)
        assert "\x1b" not in text
        assert max(map(len, text.splitlines())) <= columns
        assert ("then" in text) == (columns == 160)
        assert "…" not in text
