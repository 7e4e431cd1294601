r"""How far the second moment of one network and example lies from their average.

Given the layers below, the pre-activations of a layer are exactly normal; what a finite
width changes is that their second moment q is itself random. So everything of order
1/width follows from the relative variance of q (`Field.spread`), over networks and over
the examples of the batch. A contraction averages :math:`n` channels under its taps:

.. math:: D' = s\,(D + (1 + D)\,\kappa/n), \qquad \kappa = E[x^4]/E[x^2]^2 - 1,

with s the mean over pairs of taps of the squared correlation there, and an activation
integrates over q, log-normal with that variance: :math:`E[V(q)]`, not :math:`V(E[q])`.

Backward, the expected squared gradient with respect to a layer is the growth of a white
perturbation there, so three moments of (x, its perturbation) close to order 1/width:
the power p of the perturbation, the covariance of p with q, and the squared alignment
of the perturbation with x. A cotangent carries how much is to come of each
(`Response`), relative to what comes of p alone: the adjoint of that 3 x 3 recursion.
Derived in docs/theory.md.

References:
    [Hanin2018] the variance of q over networks, for ReLU.
"""

from collections.abc import Sequence

import numpy as np

from layerwise.theory import lags as lagging, marginal
from layerwise.theory.response import NO_RESPONSE, Response
from layerwise.theory.state import Field, State, common


def excess(field: Field) -> float:
    """Returns E[x^4]/E[x^2]^2 - 1 of one entry: 2 if normal, 5 behind ReLU."""
    g = marginal.nodes() if field.shape is None else field.shape
    variance = max(float(np.mean(field.second - np.square(field.mean))), 0.0)
    root = float(np.sqrt(np.mean(np.square(field.mean))))
    x = np.copysign(root, np.mean(field.mean)) + np.sqrt(variance) * g
    w = marginal.weights()
    second = float(w @ x**2)
    return float(w @ x**4) / second**2 - 1.0 if second > 0 else 0.0


def shares(state: State) -> list[float]:
    """Returns each part's share of the second moment."""
    top = max(f.log_scale for _, f in state.parts)
    parts = [
        n * float(np.mean(f.second)) * float(np.exp(max(f.log_scale - top, -700)))
        for n, f in state.parts
    ]
    total = sum(parts)
    return [p / total if total > 0 else 0.0 for p in parts]


def channel_noise(state: State) -> float:
    """Returns the relative variance of the mean of x^2 over the channels at hand."""
    return sum(
        s * s * excess(f) / n
        for s, (n, f) in zip(shares(state), state.parts, strict=True)
        if s > 0
    )


def tap_correlations(
    field: Field, taps: Sequence[tuple[int, float]]
) -> tuple[float, float]:
    """Returns means over pairs of taps: squared correlation, and |it| times overlap.

    Args:
        field: What is contracted.
        taps: Number of taps, and positions between two of them, per axis.
    """
    held = _by_lag(field)
    overlap = held[1]
    squared = held[0]
    for (count, step), lags in zip(taps, field.lags, strict=True):
        plain, falling = np.zeros(len(lags)), np.zeros(len(lags))
        for d in range(-(count - 1), count):
            share = (count - abs(d)) / count**2
            where = _between(lags, d * step)
            plain += share * where
            falling += share * (1 - abs(d) / count) * where
        squared = np.tensordot(plain, squared, (0, 0))
        overlap = np.tensordot(falling, overlap, (0, 0))
    return float(squared), float(overlap)


def _between(lags: tuple[int, ...], at: float) -> np.ndarray:
    """Weights of the held lags that interpolate one."""
    out = np.zeros(len(lags))
    j = int(np.searchsorted(lags, at))
    if j in (0, len(lags)) or lags[min(j, len(lags) - 1)] == at:
        out[min(j, len(lags) - 1)] = 1.0
        return out
    weight = (at - lags[j - 1]) / (lags[j] - lags[j - 1])
    out[j - 1], out[j] = 1 - weight, weight
    return out


def _by_lag(field: Field) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared, and mean absolute, correlation of a pair, ``(*lags,)``."""
    centred, sd = marginal.centred(field)
    pair = sd * lagging.shifted(sd, field.lags)
    live = pair > 0
    rho = np.clip(np.where(live, centred[0] / np.where(live, pair, 1.0), 0.0), -1, 1)
    over = tuple(range(-field.rank, 0))
    count = np.maximum(live.sum(axis=over), 1)
    return np.sum(rho**2, axis=over) / count, np.sum(np.abs(rho), axis=over) / count


def contracted(
    state: State, taps: Sequence[tuple[int, float]], fixed: bool = False
) -> float:
    """Returns the spread behind a contraction of a value (`fixed`: of data)."""
    weights = shares(state)
    before = common(weights, [f.spread for _, f in state.parts])
    squared, _ = tap_correlations(state.average(), taps)
    noise = 0.0 if fixed else channel_noise(state)
    return squared * (before + (1.0 + before) * noise)


def pulled_through(
    response: Response, state: State, taps: Sequence[tuple[int, float]]
) -> tuple[Response, float]:
    """Returns the response in front of a contraction, and what it adds to the log."""
    if response == NO_RESPONSE:
        return response, 0.0
    squared, overlap = tap_correlations(state.average(), taps)
    entries = float(np.prod([t for t, _ in taps], initial=1.0))
    power, alignment = squared * response.power, overlap * response.alignment
    own = response.alignment / (state.channels * entries)
    unit = power / state.channels + own
    return Response(power, alignment, unit), own


def of_batch(squares: np.ndarray) -> float:
    """Returns the relative variance over examples of ``(example, *positions)``."""
    mean = squares.mean(axis=0)
    total = float(np.mean(mean**2))
    return float(np.mean(np.var(squares, axis=0)) / total) if total > 0 else 0.0
