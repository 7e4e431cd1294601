"""Parameter counts: every architecture at its published size, without its memory.

Sources: OTHERS, asserted by independent implementations (torchvision, timm, pytorchcv)
for the same definition; FORMULA, summed up from the table of the architecture.
"""

import math

import jax
import jax.numpy as jnp
import pytest

from layerwise import zoo


OTHERS, FORMULA = "others", "formula"

COUNTS = [
    ("f34", {}, 21_108_362, FORMULA),
    ("f50", {}, 20_729_226, FORMULA),
    ("f50", {"num_classes": 1000}, 22_757_736, FORMULA),
    ("alexnet_2012", {}, 60_965_224, FORMULA),
    ("alexnet_2012", {"groups": 1}, 62_378_344, OTHERS),
    ("alexnet_2014", {}, 61_100_840, OTHERS),
    ("zfnet", {}, 62_357_608, OTHERS),
    ("vgg16", {}, 138_357_544, OTHERS),
    ("vgg19", {}, 143_667_240, OTHERS),
    ("googlenet", {}, 6_998_552, FORMULA),
    ("googlenet", {"bias": False}, 6_991_272, FORMULA),
    ("googlenet_bn", {}, 6_624_904, OTHERS),
    ("bn_inception", {}, 11_295_240, OTHERS),
    ("inception_v3", {}, 23_834_568, OTHERS),
    ("resnet18", {}, 11_689_512, OTHERS),
    ("resnet34", {}, 21_797_672, OTHERS),
    ("resnet50", {}, 25_557_032, OTHERS),
    ("resnet101", {}, 44_549_160, OTHERS),
    ("resnet152", {}, 60_192_808, OTHERS),
    ("wide_resnet50_2", {}, 68_883_240, OTHERS),
    ("resnext50_32x4d", {}, 25_028_904, OTHERS),
    ("resnext101_32x4d", {}, 44_177_704, OTHERS),
    ("resnext101_64x4d", {}, 83_455_272, OTHERS),
    ("cifar_resnext", {}, 34_426_698, FORMULA),
    ("cifar_resnext", {"groups": 16}, 68_155_210, OTHERS),
    ("cifar_resnext", {"groups": 32, "group_width": 4}, 4_775_754, OTHERS),
    ("se_resnet18", {}, 11_778_592, OTHERS),
    ("se_resnet34", {}, 21_958_868, OTHERS),
    ("se_resnet50", {}, 28_088_024, OTHERS),
    ("se_resnet101", {}, 49_326_872, OTHERS),
    ("se_resnet152", {}, 66_821_848, OTHERS),
    ("se_resnext50_32x4d", {}, 27_559_896, OTHERS),
    ("senet154", {}, 115_088_984, OTHERS),
    ("cifar_se_resnet", {}, 274_847, OTHERS),
    ("cifar_plain", {}, 269_722, FORMULA),
    ("cifar_plain", {"depth": 56}, 853_018, FORMULA),
    ("cifar_resnet", {"shortcut": "projection"}, 272_474, OTHERS),
    ("cifar_resnet", {"depth": 32, "shortcut": "projection"}, 466_906, FORMULA),
    ("cifar_resnet", {"depth": 44, "shortcut": "projection"}, 661_338, FORMULA),
    ("cifar_resnet", {"depth": 56, "shortcut": "projection"}, 855_770, OTHERS),
    ("cifar_resnet", {"depth": 110, "shortcut": "projection"}, 1_730_714, OTHERS),
    ("cifar_resnet", {"depth": 1202, "shortcut": "projection"}, 19_424_026, OTHERS),
    ("stochastic_depth_resnet", {}, 1_727_962, FORMULA),
    ("preresnet", {}, 1_703_258, OTHERS),
    ("preresnet", {"depth": 1001}, 10_327_706, OTHERS),
    ("wide_resnet", {"depth": 16, "widen": 4}, 2_748_890, FORMULA),
    ("wide_resnet", {"depth": 16, "widen": 8}, 10_961_370, FORMULA),
    ("wide_resnet", {"depth": 16, "widen": 10}, 17_116_634, OTHERS),
    ("wide_resnet", {"depth": 22, "widen": 8}, 17_158_106, FORMULA),
    ("wide_resnet", {"depth": 28, "widen": 10}, 36_479_194, OTHERS),
    ("wide_resnet", {"depth": 40, "widen": 2}, 2_243_546, FORMULA),
    ("wide_resnet", {"depth": 40, "widen": 4}, 8_949_210, FORMULA),
    ("wide_resnet", {"depth": 40, "widen": 8}, 35_748_314, OTHERS),
    # RoR-3: 18 (27) blocks per stage and an identity around the first stage is one
    # reading of the paper; the other three are what implementations made of it.
    ("ror3", {"depth": 56}, 762_746, OTHERS),
    ("ror3", {}, 1_637_690, OTHERS),
    ("ror3", {"depth": 164}, 2_512_634, OTHERS),
    ("ror3", {"blocks": 18, "project_first": False}, 1_734_618, FORMULA),
    ("ror3", {"blocks": 27, "project_first": False}, 2_609_562, FORMULA),
    # The paper prints 1.0M, 7.0M and 27.2M for these three.
    ("cifar_densenet", {}, 1_019_722, FORMULA),
    ("cifar_densenet", {"depth": 100}, 6_979_642, FORMULA),
    ("cifar_densenet", {"depth": 100, "growth": 24}, 27_249_082, FORMULA),
    ("cifar_densenet_bc", {}, 769_162, OTHERS),
    ("cifar_densenet_bc", {"depth": 250, "growth": 24}, 15_324_406, OTHERS),
    ("cifar_densenet_bc", {"depth": 190, "growth": 40}, 25_624_430, OTHERS),
    ("densenet121", {}, 7_978_856, OTHERS),
    ("densenet201", {}, 20_013_928, OTHERS),
    ("fractalnet", {}, 33_724_618, OTHERS),
    ("unet", {}, 31_030_658, FORMULA),
    ("vit_ti16", {}, 5_717_416, OTHERS),
    ("vit_s16", {}, 22_050_664, OTHERS),
    ("vit_b16", {}, 86_567_656, OTHERS),
    ("vit_l16", {}, 304_326_632, OTHERS),
    ("mixer_s16", {}, 18_528_264, OTHERS),
    ("mixer_b16", {}, 59_880_472, OTHERS),
    ("convnext_t", {}, 28_589_128, OTHERS),
    ("convnext_b", {}, 88_591_464, OTHERS),
    ("mlp", {}, 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10, FORMULA),
    ("taki_mlp", {}, 784 * 64 + 100 * 64**2 + 64 * 10, FORMULA),
    ("taki_cnn", {}, 27 * 64 + 100 * 9 * 64**2 + 64 * 10, FORMULA),
    ("highway_mlp", {}, 785 * 50 + 48 * 2 * 51 * 50 + 51 * 10, FORMULA),
    ("highway_cnn", {}, 28 * 32 + 17 * 2 * 289 * 32 + 33 * 10, FORMULA),
]

# Bottlenecks, alpha: the count with widths rounded to nearest (the authors' code, also
# asserted by others for the first and the last), and with floor (the paper's formula).
PYRAMIDS = {
    (110, 48.0, False): (1_772_706, 1_732_856),
    (110, 84.0, False): (3_904_446, 3_855_054),
    (110, 270.0, False): (28_485_477, 28_485_477),
    (164, 48.0, True): (1_715_442, 1_677_134),
    (164, 84.0, True): (3_757_494, 3_710_550),
    (164, 270.0, True): (27_216_021, 27_216_021),
    (200, 240.0, True): (26_752_702, 26_594_048),
    (236, 220.0, True): (26_969_046, 26_795_126),
    (272, 200.0, True): (26_210_842, 26_046_428),
}

# Tracing one of these takes seconds: hundreds of layers, or hundreds of widths.
SLOW_DEPTH = 100
SLOW_NAMES = {
    "cifar_densenet_bc",
    "convnext_b",
    "densenet121",
    "densenet201",
    "resnet152",
    "resnext101_32x4d",
    "resnext101_64x4d",
    "se_resnet101",
    "se_resnet152",
    "senet154",
    "vit_l16",
}


def count(model) -> int:
    inputs = jax.ShapeDtypeStruct((1, *model.input_shape), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))


def _id(name, kwargs):
    return ",".join([name, *(f"{k}={v}" for k, v in kwargs.items())])


def _is_slow(name, kwargs):
    depth = kwargs.get("depth", 6 * kwargs.get("blocks", 0))
    return name in SLOW_NAMES or depth >= SLOW_DEPTH


@pytest.mark.parametrize(
    ("name", "kwargs", "expected"),
    [
        pytest.param(
            *row[:3],
            id=_id(*row[:2]),
            marks=[pytest.mark.slow] if _is_slow(*row[:2]) else [],
        )
        for row in COUNTS
    ],
)
def test_count_is_the_published_one(name, kwargs, expected):
    assert count(zoo.create(name, **kwargs)) == expected


@pytest.mark.parametrize(
    "n", [3, 5, 7, 9, *(pytest.param(n, marks=pytest.mark.slow) for n in (18, 200))]
)
def test_option_a_follows_its_closed_form(n):
    # Three stages of 2n convolutions 3x3 at 16, 32, 64 channels; no shortcut counts.
    assert count(zoo.create("cifar_resnet", depth=6 * n + 2)) == 97_216 * n - 21_926


@pytest.mark.parametrize(
    ("depth", "alpha", "deep", "rounding", "expected"),
    [
        pytest.param(
            *config,
            rounding,
            value,
            marks=[pytest.mark.slow] if config != (110, 48.0, False) else [],
        )
        for config, values in PYRAMIDS.items()
        for rounding, value in zip(("nearest", "floor"), values, strict=True)
    ],
)
def test_pyramidnet_in_both_roundings(depth, alpha, deep, rounding, expected):
    model = zoo.create(
        "pyramidnet", depth=depth, alpha=alpha, deep=deep, rounding=rounding
    )
    assert count(model) == expected


def test_f34_is_the_sum_of_its_table():
    table = [(7, 3, 64)] + [(3, 64, 64)] * 6
    for inner in (64, 128, 256):
        depth = {64: 8, 128: 12, 256: 6}[inner]
        table += [(3, inner, 2 * inner)] + [(3, 2 * inner, 2 * inner)] * (depth - 1)
    convolutions = sum(k * k * fan_in * out + out for k, fan_in, out in table)
    assert len(table) == 33
    assert count(zoo.create("f34")) == convolutions + 512 * 10 + 10


def test_unet_is_the_sum_of_its_table():
    def double(features_in, features):
        return 9 * (features_in + features) * features + 2 * features

    widths = [64, 128, 256, 512, 1024]
    down = double(1, 64) + sum(double(w // 2, w) for w in widths[1:])
    up = sum(4 * 2 * w * w + w + double(2 * w, w) for w in widths[:-1])
    assert count(zoo.create("unet")) == down + up + 64 * 2 + 2


def test_fpn_adds_its_laterals_and_outputs_to_the_resnet():
    backbone = 25_557_032 - 2048 * 1000 - 1000
    laterals = sum(256 * c + 256 for c in (256, 512, 1024, 2048))
    outputs = 4 * (9 * 256 * 256 + 256)
    assert count(zoo.create("fpn_resnet50")) == backbone + laterals + outputs


def test_stacked_hourglass_is_the_sum_of_its_blocks():
    def block(features_in, features):  # BN-ReLU-conv three times, projection if needed
        half = features // 2
        weights = features_in * half + 9 * half * half + half * features
        norms = 2 * (features_in + half + half)
        projection = features_in * features if features_in != features else 0
        return weights + norms + projection

    stem = 49 * 3 * 64 + 2 * 64 + block(64, 128) + block(128, 128) + block(128, 256)
    # A skip, a way in and a way out per level, and one block at the bottom; then one
    # block, a 1x1 with bias and BN, and the heatmaps.
    stack = (3 * 4 + 1 + 1) * block(256, 256)
    stack += 256 * 256 + 256 + 2 * 256 + 256 * 16 + 16
    back = 256 * 256 + 256 + 16 * 256 + 256
    assert count(zoo.create("stacked_hourglass", stacks=1)) == stem + stack
    assert count(zoo.create("stacked_hourglass", stacks=2)) == stem + 2 * stack + back


def test_every_architecture_has_a_count():
    elsewhere = {
        "cifar_resnet",
        "pyramidnet",
        "pyramidnet_bottleneck",
        "fpn_resnet50",
        "stacked_hourglass",
    }
    assert set(zoo.names()) == {name for name, *_ in COUNTS} | elsewhere


def test_pyramidnet_bottleneck_is_the_272_of_the_table():
    model = zoo.create("pyramidnet_bottleneck")
    assert (model.depth, model.alpha, model.deep) == (272, 200.0, True)
