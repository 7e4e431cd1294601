r"""The classics: weight variance as a constant over a fan.

Fans are those of the real linear operation (`layerwise.tracing.connections`): inputs
that one output sums over, outputs that one input reaches, counted by the kernel's taps
with padding and stride ignored, as all of these schemes do.

======================  ==========================  =============================
scheme                  :math:`\sigma_w^2`           keeps, for a ReLU chain
======================  ==========================  =============================
``lecun``               1/fan_in                    forward, without activation
``glorot``              2/(fan_in + fan_out)        a compromise of both
``kaiming_fan_in``      2/fan_in                    forward
``kaiming_fan_out``     2/fan_out                   backward
======================  ==========================  =============================

References:
    [LeCun1998]; [Glorot2010] eq. (12), whose normal form is used here; [He2015] eq.
    (10) and (14).
"""

from layerwise.tracing import TracedModel
from layerwise.tracing.connections import Connections


def lecun(c: Connections) -> float:
    """Returns 1/fan_in."""
    return 1.0 / c.fan_in


def glorot(c: Connections) -> float:
    """Returns 2/(fan_in + fan_out)."""
    return 2.0 / (c.fan_in + c.fan_out)


def kaiming_fan_in(c: Connections) -> float:
    """Returns 2/fan_in."""
    return 2.0 / c.fan_in


def kaiming_fan_out(c: Connections) -> float:
    """Returns 2/fan_out."""
    return 2.0 / c.fan_out


PER_LAYER = {
    "lecun": lecun,
    "glorot": glorot,
    "kaiming_fan_in": kaiming_fan_in,
    "kaiming_fan_out": kaiming_fan_out,
}


def variances(traced: TracedModel, scheme: str) -> dict[str, float]:
    """Returns layer path -> weight variance under one of `PER_LAYER`."""
    rule = PER_LAYER[scheme]
    return {layer.path: rule(layer.connections) for layer in traced.layers}
