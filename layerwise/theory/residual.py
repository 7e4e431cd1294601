r"""Closed laws of deep residual networks: Taki's, with their exponents corrected.

Notation: blocks 1 ... L of width n, weights of variance v, ``s = n v``, activation f
with ``a = E[f'^2]`` (1/2 for ReLU, 1 for the identity). The order of W and f in the
residual function decides everything:

* ``z + W f(z)``: the residual is fresh and of zero mean, both directions grow by
  ``1 + a s`` a block, hence ``v = c/(nL)`` gives ``exp(a c)`` whatever the depth.
* ``z + f(W z)``: the mean of f adds up coherently, and no such law holds. With ReLU,
  c = 2, 100 blocks, the first gives 2.7 and the second 2e4 forward.

Exact as the width goes to infinity.

References:
    [Taki2017], re-derived: the slides print ``b^L`` for ``(b/2)^L``, and ``L/l`` for
    the law of batch normalization, which is right for linear residuals only.
"""

import dataclasses

import numpy as np

from layerwise.moments.activations import cached_float64
from layerwise.moments.quadrature import expectation
from layerwise.theory.mean_field import activation_moments
from layerwise.types import Activation


def plain_growth(s: float, depth: int, phi: Activation) -> float:
    r"""Returns r_0 / r_L of a plain network: :math:`(s E[f'^2])^L`.

    For ReLU :math:`(b/2)^L` with ``v = b/n``; He's b = 2 keeps it at 1. Exact, wide,
    for homogeneous f; for others taken at q = 1.
    """
    return float((s * activation_moments(phi)[2]) ** depth)


def weight_then_add(
    s: float, depth: int, phi: Activation, q_0: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    r"""Returns q_0..q_L and r_0..r_L (r_L = 1) of ``z + W f(z)``.

    :math:`q_\ell = q_{\ell-1} + s E[f(z)^2]` and
    :math:`r_{\ell-1} = r_\ell (1 + s E[f'(z)^2])`,
    with z normal of second moment :math:`q_{\ell-1}` (it is a sum of fresh terms).
    """
    q, slope = [q_0], []
    for _ in range(depth):
        _, second, d = activation_moments(phi, q[-1])
        slope.append(d)
        q.append(q[-1] + s * second)
    r = [1.0]
    for d in reversed(slope):
        r.append(r[-1] * (1.0 + s * d))
    return np.array(q), np.array(r[::-1])


def activate_then_add(
    s: float, depth: int, phi: Activation, q_0: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    r"""Returns q_0..q_L and the mean of z_0..z_L for ``z + f(W z)``, forward only.

    .. math::
        \mu' &= \mu + E f(\sqrt{s q} x), \\
        q' &= q + 2 \mu E f(\sqrt{s q} x) + E f(\sqrt{s q} x)^2

    The backward direction has no law in q alone: W and f'(W z) are dependent through
    the mean of z, and the sum of the cotangents grows on its own.
    """
    q, mean = [q_0], [0.0]
    for _ in range(depth):
        drift, second, _ = activation_moments(phi, s * q[-1])
        q.append(q[-1] + 2.0 * mean[-1] * drift + second)
        mean.append(mean[-1] + drift)
    return np.array(q), np.array(mean)


def two_weight_factor(s_1: float, s_2: float, phi: Activation) -> float:
    r"""Returns the growth per block of ``z + W_2 f(W_1 z)``: :math:`1 + a s_1 s_2`.

    Both directions, for homogeneous f: a = E[f'^2] is 1/2 for ReLU. Depth-safe scales
    are therefore :math:`s_1 s_2 = c/L`, that is :math:`v = \sqrt{c/L}/n` each, not
    :math:`c/(nL)`.
    """
    return 1.0 + activation_moments(phi)[2] * s_1 * s_2


@dataclasses.dataclass(frozen=True)
class BatchNormLaw:
    r"""Gradient law of ``z + W f(BN z)``.

    Attributes:
        ratio: r_l / r_L for l = 0 ... L.
        exponent: :math:`\kappa` of the asymptote :math:`(L/\ell)^\kappa`.
    """

    ratio: np.ndarray
    exponent: float


def batch_norm(
    depth: int, phi: Activation, *, s: float = 2.0, q_0: float = 0.0
) -> BatchNormLaw:
    r"""Returns how gradients grow through normalized residual blocks.

    The batch variance grows linearly, :math:`Q_k = Q_0 + s \operatorname{Var}[f] k`,
    and

    .. math:: \frac{r_\ell}{r_L} = \prod_{k=\ell}^{L-1}
        \left(1 + \frac{s E[f'^2]}{Q_k}\right) \sim (L/\ell)^\kappa, \qquad
        \kappa = E[f'^2]/\operatorname{Var}[f] .

    1 for the identity, 1.1778 for tanh, :math:`\pi/(\pi-1)` = 1.4669 for ReLU:
    independent of s as :math:`Q_0 \to 0`, which is the "no tuning" of normalization.
    Exact for wide networks and large batches. Entry 0 is infinite at ``q_0 = 0``.
    """
    mean, second, slope = activation_moments(phi)
    variance = second - mean**2
    with np.errstate(divide="ignore"):
        factors = 1.0 + s * slope / (q_0 + s * variance * np.arange(depth))
    ratio = np.append(np.cumprod(factors[::-1])[::-1], 1.0)
    return BatchNormLaw(ratio, slope / variance)


def plain_batch_norm_growth(phi: Activation) -> float:
    r"""Returns the gradient's growth per layer of a plain network with BN.

    :math:`E[f'^2]/\operatorname{Var}[f]`: 1.4669 for ReLU, unavoidable by any scale.

    References:
        [Yang2019] gradient explosion under batch normalization.
    """
    f = cached_float64(phi)[0]
    mean = expectation(f).value
    _, second, slope = activation_moments(phi)
    return slope / (second - mean**2)


def depth_safe_variance(c: float, width: int, depth: int, weights: int = 1) -> float:
    r"""Returns the weight variance at which growth does not depend on depth.

    :math:`c/(nL)` for one weight per block, :math:`\sqrt{c/L}/n` for two, in general
    :math:`(c/L)^{1/m}/n`.
    """
    return (c / depth) ** (1.0 / weights) / width
