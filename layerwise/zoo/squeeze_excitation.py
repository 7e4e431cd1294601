"""Squeeze-and-excitation networks: SE-ResNet, SE-ResNeXt, SENet-154 [Hu2018]."""

from typing import Any

import flax.linen as nn
import jax

from layerwise.nn.blocks.residual import ResidualBlock, stages
from layerwise.nn.modules import ConvSpec, ImageClassifier, max_pool
from layerwise.zoo.registry import defaults, register
from layerwise.zoo.resnet import SMALL as IMAGENET_SMALL, ResNet
from layerwise.zoo.resnet_cifar import SMALL as CIFAR_SMALL, CifarResNet


_SMALL = IMAGENET_SMALL | {"squeeze": 4}


@register(small=CIFAR_SMALL | {"width": 16, "squeeze": 2})
def cifar_se_resnet(**kwargs: Any) -> CifarResNet:
    """SE-ResNet-20 for CIFAR-10, option B shortcuts; 274,847 parameters."""
    return CifarResNet(**defaults(kwargs, squeeze=16, shortcut="projection"))


@register(small=_SMALL)
def se_resnet18(**kwargs: Any) -> ResNet:
    """SE-ResNet-18; 11,778,592 parameters."""
    return ResNet(**defaults(kwargs, squeeze=16, depths=(2, 2, 2, 2)))


@register(small=_SMALL)
def se_resnet34(**kwargs: Any) -> ResNet:
    """SE-ResNet-34; 21,958,868 parameters."""
    return ResNet(**defaults(kwargs, squeeze=16, depths=(3, 4, 6, 3)))


@register(small=_SMALL)
def se_resnet50(**kwargs: Any) -> ResNet:
    """SE-ResNet-50; 28,088,024 parameters."""
    return ResNet(**defaults(kwargs, squeeze=16, depths=(3, 4, 6, 3), deep=True))


@register(small=_SMALL)
def se_resnet101(**kwargs: Any) -> ResNet:
    """SE-ResNet-101; 49,326,872 parameters."""
    return ResNet(**defaults(kwargs, squeeze=16, depths=(3, 4, 23, 3), deep=True))


@register(small=_SMALL)
def se_resnet152(**kwargs: Any) -> ResNet:
    """SE-ResNet-152; 66,821,848 parameters."""
    return ResNet(**defaults(kwargs, squeeze=16, depths=(3, 8, 36, 3), deep=True))


@register(small=_SMALL | {"groups": 4})
def se_resnext50_32x4d(**kwargs: Any) -> ResNet:
    """SE-ResNeXt-50 32x4d; 27,559,896 parameters."""
    published = {"depths": (3, 4, 6, 3), "deep": True, "groups": 32, "inner_ratio": 2}
    return ResNet(**defaults(kwargs, squeeze=16, **published))


class SENet(ImageClassifier, kw_only=True):
    """SENet-154: three 3x3 for a stem, grouped bottlenecks, 3x3 projections, dropout.

    Differs from SE-ResNeXt-152 in that the first 1x1 of a block has half the channels
    of its 3x3, and in that projections which halve the map are 3x3.

    Attributes:
        depths: Blocks per stage.
        width: A quarter of the channels of the first stage.
        groups: Groups of every 3x3 convolution in a block.
        squeeze: Reduction ratio of squeeze-and-excitation.
        dropout: Rate in front of the last dense layer.
    """

    num_classes: int = 1000
    image_size: int = 224
    depths: tuple[int, ...] = (3, 8, 36, 3)
    width: int = 64
    groups: int = 64
    squeeze: int = 16
    dropout: float = 0.2

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Returns the logits, `(batch, num_classes)`, for images `(batch, h, w, 3)`."""
        for factor, stride in ((1, 2), (1, 1), (2, 1)):
            spec = ConvSpec(factor * self.width, 3, stride)
            x = self.conv_norm(x, spec, train=train)
        x = max_pool(x)
        widths = [self.width * 2**stage for stage in range(len(self.depths))]
        for width, stride in stages(self.depths, widths):
            convs = (
                ConvSpec(2 * width, 1),
                ConvSpec(4 * width, 3, stride, self.groups),
                ConvSpec(4 * width, 1),
            )
            x = ResidualBlock(
                convs=convs,
                squeeze=self.squeeze,
                projection_kernel=1 if stride == 1 else 3,
                **self.shared,
            )(x, train=train)
        # A factor per channel: the same before the pooling, as here, and after it.
        x = nn.Dropout(self.dropout, broadcast_dims=(-3, -2))(
            x, deterministic=not train
        )
        return self.classify(x)


@register(small=_SMALL | {"groups": 4})
def senet154(**kwargs: Any) -> SENet:
    """SENet-154; 115,088,984 parameters."""
    return SENet(**kwargs)
