"""VGG: stages of 3x3 convolutions, each ended by 2x2 max pooling [Simonyan2015]."""

from typing import Any

from layerwise.nn.blocks.plain import PlainSpec, PoolSpec
from layerwise.zoo.alexnet import ConvThenDense
from layerwise.zoo.registry import register


SMALL = {"width": 4, "dense": (16, 16), "image_size": 32, "num_classes": 10}


def vgg(depths: tuple[int, ...], *, width: int = 64, **kwargs: Any) -> ConvThenDense:
    """Returns a VGG with `depths` convolutions per stage.

    Args:
        depths: Convolutions in each of the stages.
        width: Channels of the first stage, doubled three times at most.
        **kwargs: Attributes of `ConvThenDense`.
    """
    rows = []
    for stage, depth in enumerate(depths):
        row = PlainSpec(width * min(2**stage, 8))
        rows += [row] * (depth - 1) + [row._replace(pool=PoolSpec(2, 2))]
    return ConvThenDense(tuple(rows), **kwargs)


@register(small=SMALL)
def vgg16(**kwargs: Any) -> ConvThenDense:
    """VGG-16 (configuration D); 138,357,544 parameters."""
    return vgg((2, 2, 3, 3, 3), **kwargs)


@register(small=SMALL)
def vgg19(**kwargs: Any) -> ConvThenDense:
    """VGG-19 (configuration E); 143,667,240 parameters."""
    return vgg((2, 2, 4, 4, 4), **kwargs)
