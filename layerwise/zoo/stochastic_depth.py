"""ResNet with stochastic depth: a shallow network in training [Huang2016].

Survival falls linearly from 1 to 1/2, so that of the 54 blocks of depth 110 a
training step uses 40.25 on average. No parameter is added.
"""

from typing import Any

from layerwise.zoo.registry import defaults, register
from layerwise.zoo.resnet_cifar import SMALL, CifarResNet


@register(small=SMALL)
def stochastic_depth_resnet(**kwargs: Any) -> CifarResNet:
    """ResNet-110 for CIFAR-10 with stochastic depth; 1,727,962 parameters."""
    return CifarResNet(**defaults(kwargs, depth=110, last_survival=0.5))
