"""Inception-v3: convolutions factorized into 1xn and nx1 [Szegedy2016].

No auxiliary classifier. Reductions and most of the stem are *unpadded*, which is why
the input has 299 pixels.
"""

from typing import Any

from layerwise.nn.blocks.inception import Fork, Pool, Step
from layerwise.nn.modules import ConvSpec
from layerwise.zoo.inception import InceptionNet, scale_steps
from layerwise.zoo.registry import defaults, register


_VALID_POOL = Pool("max", 2, 0)


def _grid35(pooled: int) -> Fork:
    """Returns a module for 35x35 maps; Figure 5 of the paper, but with a 5x5."""
    return Fork(
        (
            (ConvSpec(64, 1),),
            (ConvSpec(48, 1), ConvSpec(64, 5)),
            (ConvSpec(64, 1), ConvSpec(96), ConvSpec(96)),
            (Pool("avg"), ConvSpec(pooled, 1)),
        )
    )


def _grid17(inner: int) -> Fork:
    """Returns a module for 17x17 maps, of 1x7 and 7x1; Figure 6 with n = 7."""
    wide, tall = ConvSpec(inner, (1, 7)), ConvSpec(inner, (7, 1))
    return Fork(
        (
            (ConvSpec(192, 1),),
            (ConvSpec(inner, 1), wide, ConvSpec(192, (7, 1))),
            (ConvSpec(inner, 1), tall, wide, tall, ConvSpec(192, (1, 7))),
            (Pool("avg"), ConvSpec(192, 1)),
        )
    )


def _grid8() -> Fork:
    """Returns a module for 8x8 maps, whose branches fork into 1x3 and 3x1; Figure 7."""
    fork = Fork(((ConvSpec(384, (1, 3)),), (ConvSpec(384, (3, 1)),)))
    return Fork(
        (
            (ConvSpec(320, 1),),
            (ConvSpec(384, 1), fork),
            (ConvSpec(448, 1), ConvSpec(384), fork),
            (Pool("avg"), ConvSpec(192, 1)),
        )
    )


_STEPS: tuple[Step, ...] = (
    ConvSpec(32, 3, 2, padding=0),
    ConvSpec(32, 3, padding=0),
    ConvSpec(64),
    _VALID_POOL,
    ConvSpec(80, 1),
    ConvSpec(192, 3, padding=0),
    _VALID_POOL,
    _grid35(32),
    _grid35(64),
    _grid35(64),
    Fork(
        (
            (ConvSpec(384, 3, 2, padding=0),),
            (ConvSpec(64, 1), ConvSpec(96), ConvSpec(96, 3, 2, padding=0)),
            (_VALID_POOL,),
        )
    ),
    _grid17(128),
    _grid17(160),
    _grid17(160),
    _grid17(192),
    Fork(
        (
            (ConvSpec(192, 1), ConvSpec(320, 3, 2, padding=0)),
            (
                ConvSpec(192, 1),
                ConvSpec(192, (1, 7)),
                ConvSpec(192, (7, 1)),
                ConvSpec(192, 3, 2, padding=0),
            ),
            (_VALID_POOL,),
        )
    ),
    _grid8(),
    _grid8(),
)


# One module of each kind: stem, 35x35, reduction, 17x17, reduction, 8x8.
_SMALL_STEPS = scale_steps(
    (*_STEPS[:8], _STEPS[10], _STEPS[11], _STEPS[15], _STEPS[16]), 2, 32
)


@register(small={"steps": _SMALL_STEPS, "image_size": 75, "num_classes": 10})
def inception_v3(*, width: int = 32, **kwargs: Any) -> InceptionNet:
    """Inception-v3 without auxiliary classifier; 23,834,568 parameters.

    Args:
        width: Channels of the first layer; the paper's 32 scale all others.
        **kwargs: Attributes of `InceptionNet`.
    """
    steps = scale_steps(_STEPS, width, 32)
    return InceptionNet(**defaults(kwargs, steps=steps, image_size=299, dropout=0.5))
