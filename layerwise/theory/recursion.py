r"""The paper's recursions: eq. (4) forward, eq. (5) backward, exactly as printed.

One number per layer. With :math:`q_\ell = E[u_\ell^2]` after the bias and
:math:`r_\ell = E[(\partial E/\partial z_\ell)^2]` after the pooling,

.. math::
    q_\ell &= \sigma_b^2 + \sigma_w^2\, q_{\ell-1} \tau_{\ell-1}
              \frac{\epsilon_\ell}{M'_\ell} & (4) \\
    r_{\ell-1} &= \sigma_w^2\, r_\ell\, \gamma_\ell \frac{\epsilon_\ell}{M_{\ell-1}}
              & (5)

where :math:`\tau, \gamma` are Table 1's constants (`layerwise.moments.pooling`),
:math:`\epsilon` counts connections (`layerwise.tracing.connections`), :math:`M'` the
outputs of the operation and :math:`M` its inputs. The conventions that the paper leaves
open are those of its authors' code: :math:`\tau_0 = 1`, and a layer without activation
and pooling has :math:`\tau = \gamma = 1`.

Beyond Table 1 this file takes any traced activation, with its constants at the layer's
own :math:`q`; for ReLU that changes nothing.

What it is worth: one layer's factor is exact in expectation over weights where inputs
are uncorrelated and each pooling input has one window. Chained, it is not: the average
over a map of "connections lost to zero padding" does not compound like an average, and
at 34 layers eq. (4) and (5) are off by factors of 4 to 10. It is here as the paper has
it, to be compared with measurement.

References:
    [Henmi2020] eq. (4), (5), Table 1.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from layerwise.moments.pooling import PoolConstants
from layerwise.tracing import ChainLayer, TracedModel, chain


@dataclasses.dataclass(frozen=True)
class Recursion:
    """The two curves.

    Attributes:
        q: q_1 ... q_L.
        r: r_0 ... r_L.
        constants: Table 1's constants of layers 1 ... L.
    """

    q: np.ndarray
    r: np.ndarray
    constants: tuple[PoolConstants, ...]


def iterate(
    layers: Sequence[ChainLayer],
    weight_variance: Sequence[float],
    *,
    bias_variance: Sequence[float] | float = 0.0,
    q_0: float = 1.0,
    r_last: float = 1.0,
) -> Recursion:
    """Iterates eq. (4) up and eq. (5) down.

    Args:
        layers: The layers in order.
        weight_variance: sigma_w^2 of each.
        bias_variance: sigma_b^2 of each, or one for all.
        q_0: Second moment of the input.
        r_last: Second moment of the cotangent at the output.

    Returns:
        Both curves, in float64.
    """
    sigma_b = np.broadcast_to(np.asarray(bias_variance, float), len(layers))
    q, constants, second = [], [], q_0  # tau_0 = 1
    for layer, sigma_w, b in zip(layers, weight_variance, sigma_b, strict=True):
        # [Henmi2020] eq. (4)
        q.append(b + sigma_w * second * layer.total / layer.n_out)
        constants.append(layer.constants(q[-1]))
        second = constants[-1].second
    r = [r_last]
    for layer, sigma_w, c in zip(
        reversed(layers), reversed(weight_variance), reversed(constants), strict=True
    ):
        # [Henmi2020] eq. (5)
        r.append(sigma_w * r[-1] * c.gamma * layer.total / layer.n_in)
    return Recursion(np.array(q), np.array(r[::-1]), tuple(constants))


def predict_recursion(
    traced: TracedModel,
    weight_variance: Mapping[str, float],
    *,
    bias_variance: Mapping[str, float] | None = None,
    q_0: float = 1.0,
    r_last: float = 1.0,
) -> Recursion:
    """Predicts both curves of a traced model by eq. (4) and (5).

    Args:
        traced: The model.
        weight_variance: Layer path -> sigma_w^2 (its weight's second moment).
        bias_variance: Layer path -> sigma_b^2; absent paths have none.
        q_0: Second moment of the input.
        r_last: Second moment of the cotangent at the output.

    Raises:
        UnsupportedModelError: As `layerwise.tracing.chain`.
    """
    layers = chain(traced)
    biases = bias_variance or {}
    return iterate(
        layers,
        [weight_variance[y.path] for y in layers],
        bias_variance=[biases.get(y.path, 0.0) for y in layers],
        q_0=q_0,
        r_last=r_last,
    )
