r"""Adaptive Signal Variances: the paper's initializers, eq. (6) and (7).

Solving eq. (4) for :math:`q_\ell = q_0 = 1`, and eq. (5) for :math:`r_\ell = r_L = 1`,

.. math::
    \sigma_{w,\ell}^2 &= \frac{M'_\ell}{\tau_{\ell-1} \epsilon_\ell} & (6) \\
    \sigma_{w,\ell}^2 &= \frac{M_{\ell-1}}{\gamma_\ell \epsilon_\ell} & (7)

With one input per output pooled (T = 1) and no padding they are He's 2/fan_in and
2/fan_out.

The backward rule can be extreme: :math:`\gamma` of a 7x7 average is 1/4802, which
asks of the layer before it a standard deviation 49 times He's. The authors' code caps
it at three times what the same formula gives with the pooling constant replaced by
ReLU's 1/2; the paper does not say so. Here that is the option ``cap=3.0``.

Exact for what it promises under the assumptions of eq. (4) and (5), which deep padded
networks break: see `layerwise.theory.recursion`.

References:
    [Henmi2020] eq. (6), (7); the cap is in the authors' published code.
"""

import math
from collections.abc import Sequence

from layerwise.initializers.registry import Assignment, Scheme, register
from layerwise.tracing import ChainLayer, TracedModel, chain


def asv_forward(
    layers: Sequence[ChainLayer], *, cap: float | None = None
) -> list[float]:
    """Returns the weight variances of eq. (6), layer by layer.

    Args:
        layers: The layers in order.
        cap: Bound on the standard deviation, as a multiple of what the formula gives
            with tau = 1/2; None for none.
    """
    out, tau = [], 1.0  # tau_0 = 1
    for layer in layers:
        # [Henmi2020] eq. (6)
        ratio = layer.n_out / layer.total
        out.append(_capped(ratio / tau, ratio / 0.5, cap))
        tau = layer.constants(1.0).tau
    return out


def asv_backward(
    layers: Sequence[ChainLayer], *, cap: float | None = None
) -> list[float]:
    """Returns the weight variances of eq. (7), layer by layer.

    Gamma is taken at q = 1; for ReLU it does not depend on q.

    Args:
        layers: The layers in order.
        cap: As for `asv_forward`, with gamma = 1/2.
    """
    out = []
    for layer in layers:
        # [Henmi2020] eq. (7)
        ratio = layer.n_in / layer.total
        gamma = layer.constants(1.0).gamma
        out.append(_capped(ratio / gamma if gamma else math.inf, ratio / 0.5, cap))
    return out


def _capped(variance: float, base: float, cap: float | None) -> float:
    return variance if cap is None else min(variance, cap**2 * base)


RULES = {"asv_forward": asv_forward, "asv_backward": asv_backward}


def variances(
    traced: TracedModel, scheme: str, *, cap: float | None = None
) -> dict[str, float]:
    """Returns layer path -> weight variance of eq. (6) or (7) on a traced model.

    Raises:
        UnsupportedModelError: If the model is not a chain of layers.
    """
    layers = chain(traced)
    values = RULES[scheme](layers, cap=cap)
    return {layer.path: v for layer, v in zip(layers, values, strict=True)}


def _register(name: str, preserves: str) -> None:
    register(
        Scheme(
            name,
            lambda p: Assignment(variances(p.traced, name, cap=p.options.get("cap"))),
            needs="a chain of layers",
            preserves=preserves,
            supports=(
                "dense",
                "ReLU",
                "other activations",
                "padding",
                "stride",
                "pooling",
            ),
            source="[Henmi2020]",
            options=("cap",),
        )
    )


_register("asv_forward", "E[u^2] forward, by eq. (4)")
_register("asv_backward", "the cotangent backward, by eq. (5)")
