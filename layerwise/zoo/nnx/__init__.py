"""The same architectures as Flax NNX modules: F34 and F50, ResNet, ViT.

A twin is built from the Linen module, which stays the only description of the
architecture, and names its parameters as that one does, so that `load` copies the
variables of one into the other::

    model = layerwise.zoo.nnx.f34(width=16, rngs=nnx.Rngs(0))
    model(images)

Layers run in `jax.named_scope`, since NNX by itself leaves no names in a program.
"""

from layerwise.zoo.nnx.plain import PlainNet, f34, f50
from layerwise.zoo.nnx.resnet import ResNet, resnet18, resnet50
from layerwise.zoo.nnx.twin import Twin, load
from layerwise.zoo.nnx.vision_transformer import ViT, vit_b16


__all__ = [
    "PlainNet",
    "ResNet",
    "Twin",
    "ViT",
    "f34",
    "f50",
    "load",
    "resnet18",
    "resnet50",
    "vit_b16",
]
