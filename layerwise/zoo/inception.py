"""GoogLeNet and BN-Inception [Szegedy2015] [Ioffe2015]; no auxiliary classifiers.

Trap: "GoogLeNet" of torchvision is not the paper's: it has batch normalization, no
biases, and 3x3 convolutions where the paper has 5x5.
"""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.inception import (
    Fork,
    Inception,
    LocalNorm,
    Pool,
    Step,
    apply_steps,
)
from layerwise.nn.modules import ConvSpec, ImageClassifier
from layerwise.zoo.registry import defaults, register


class InceptionNet(ImageClassifier, kw_only=True):
    """Convolutions, poolings and inception modules in a row, dropout, dense.

    Attributes:
        steps: First to last; every `Fork` becomes a module of its own.
        dropout: Rate in front of the last dense layer.
        bias: Whether convolutions have biases; None: where no normalization follows.
    """

    num_classes: int = 1000
    image_size: int = 224
    steps: tuple[Step, ...]
    dropout: float = 0.4
    bias: bool | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        for step in self.steps:
            if isinstance(step, Fork):
                x = Inception(branches=step.branches, bias=self.bias, **self.shared)(
                    x, train=train
                )
            else:
                x = apply_steps(self, x, (step,), train=train, bias=self.bias)
        return self.classify(x, dropout=self.dropout, train=train)


_DOWN = Pool("max", 2, "SAME")


def scale_steps(steps: tuple[Step, ...], width: int, base: int) -> tuple[Step, ...]:
    """Returns the steps with all channels times `width / base`, at least one."""
    scaled: list[Step] = []
    for step in steps:
        if isinstance(step, ConvSpec):
            step = step._replace(features=max(step.features * width // base, 1))
        elif isinstance(step, Fork):
            step = Fork(tuple(scale_steps(b, width, base) for b in step.branches))
        scaled.append(step)
    return tuple(scaled)


def _stem(*norm: LocalNorm) -> tuple[Step, ...]:
    convs = (ConvSpec(64, 1), ConvSpec(192, 3))
    return (ConvSpec(64, 7, 2), _DOWN, *norm, *convs, *norm, _DOWN)


def _v1(row: tuple[int, ...], kernel: int) -> Fork:
    """Returns a module from a row of the paper's Table 1."""
    one, reduce3, three, reduce5, five, pooled = row
    return Fork(
        (
            (ConvSpec(one, 1),),
            (ConvSpec(reduce3, 1), ConvSpec(three, 3)),
            (ConvSpec(reduce5, 1), ConvSpec(five, kernel)),
            (Pool("max"), ConvSpec(pooled, 1)),
        )
    )


# 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj [Szegedy2015] Table 1.
_V1_STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def _v1_steps(kernel: int) -> tuple[Step, ...]:
    modules: list[Step] = []
    for stage in _V1_STAGES:
        modules += [_DOWN, *(_v1(row, kernel) for row in stage)]
    return tuple(modules[1:])  # the stem ends with the first pooling


def _small(stem: tuple[Step, ...], *modules: Step) -> dict[str, Any]:
    """Returns arguments for a network of few modules, an eighth as wide."""
    steps = scale_steps((*stem, *modules), 8, 64)
    return {"steps": steps, "image_size": 32, "num_classes": 10}


@register(small=_small(_stem(LocalNorm()), *_v1_steps(5)[:2]))
def googlenet(*, width: int = 64, **kwargs: Any) -> InceptionNet:
    """GoogLeNet as in the paper, with biases and 5x5; 6,998,552 parameters.

    Args:
        width: Channels of the stem; the paper's 64 scale all others.
        **kwargs: Attributes of `InceptionNet`; `bias=False` leaves the 7,280 biases of
            the convolutions out.
    """
    steps = scale_steps((*_stem(LocalNorm()), *_v1_steps(5)), width, 64)
    return InceptionNet(**defaults(kwargs, steps=steps, use_norm=False))


@register(small=_small(_stem(), *_v1_steps(3)[:2]))
def googlenet_bn(*, width: int = 64, **kwargs: Any) -> InceptionNet:
    """GoogLeNet of torchvision, with BN and 3x3 for 5x5; 6,624,904 parameters.

    Args:
        width: Channels of the stem; the paper's 64 scale all others.
        **kwargs: Attributes of `InceptionNet`.
    """
    steps = scale_steps((*_stem(), *_v1_steps(3)), width, 64)
    return InceptionNet(**defaults(kwargs, steps=steps, dropout=0.2))


def _v2(row: tuple[int, ...], kind: str = "avg") -> Fork:
    """Returns a module of BN-Inception: the 5x5 is two 3x3."""
    one, reduce3, three, reduce5, five, pooled = row
    return Fork(
        (
            (ConvSpec(one, 1),),
            (ConvSpec(reduce3, 1), ConvSpec(three, 3)),
            (ConvSpec(reduce5, 1), ConvSpec(five, 3), ConvSpec(five, 3)),
            (Pool(kind), ConvSpec(pooled, 1)),
        )
    )


def _v2_down(row: tuple[int, ...]) -> Fork:
    """Returns a module of stride 2, whose pooling branch passes all channels on."""
    reduce3, three, reduce5, five = row
    return Fork(
        (
            (ConvSpec(reduce3, 1), ConvSpec(three, 3, 2)),
            (ConvSpec(reduce5, 1), ConvSpec(five, 3), ConvSpec(five, 3, 2)),
            (_DOWN,),
        )
    )


_V2_STEPS = (
    _v2((64, 64, 64, 64, 96, 32)),
    _v2((64, 64, 96, 64, 96, 64)),
    _v2_down((128, 160, 64, 96)),
    _v2((224, 64, 96, 96, 128, 128)),
    _v2((192, 96, 128, 96, 128, 128)),
    _v2((160, 128, 160, 128, 160, 128)),
    _v2((96, 128, 192, 160, 192, 128)),
    _v2_down((128, 192, 192, 256)),
    _v2((352, 192, 320, 160, 224, 128)),
    _v2((352, 192, 320, 192, 224, 128), "max"),
)


@register(small=_small(_stem(), *_V2_STEPS[1:3]))
def bn_inception(*, width: int = 64, **kwargs: Any) -> InceptionNet:
    """BN-Inception, with biases under its normalizations; 11,295,240 parameters.

    Args:
        width: Channels of the stem; the paper's 64 scale all others.
        **kwargs: Attributes of `InceptionNet`.
    """
    steps = scale_steps((*_stem(), *_V2_STEPS), width, 64)
    return InceptionNet(**defaults(kwargs, steps=steps, bias=True, dropout=0.0))
