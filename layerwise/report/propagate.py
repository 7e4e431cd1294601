"""`propagate_variance`: measure, predict, compare, in one call."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from layerwise.errors import UnsupportedModelError
from layerwise.initializers import scheme_law
from layerwise.measurement import Measurement, measure
from layerwise.measurement.coverage import Select
from layerwise.measurement.ensemble import Progress
from layerwise.report.report import VarianceReport
from layerwise.theory.recursion import predict_recursion
from layerwise.types import PyTree


def propagate_variance(
    model: Any,
    params: PyTree = None,
    inputs: Any = None,
    *,
    draws: int = 16,
    key: jax.Array | None = None,
    scheme: str | None = None,
    cap: float | None = None,
    redraw: str | Callable[[jax.Array], PyTree] = "auto",
    chunk: int | None = None,
    batch_size: int | None = None,
    loss: Callable[[PyTree], jax.Array] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
    statistics: Sequence[str] = (),
    select: Select | None = None,
    mesh: jax.sharding.Mesh | None = None,
    progress: Progress | None = None,
    title: str | None = None,
) -> VarianceReport:
    """Measures every layer of a model over random networks, and predicts it beside.

    Args:
        model: A Flax module (Linen, NNX), unmodified, or ``apply(params, *inputs)``.
        params: One set of parameters, measured as it is besides the ensemble; or one
            stacked over draws, as ``jax.vmap(model.init)`` makes it; or None.
        inputs: The data, batch axis first; None for standard normal inputs where the
            model declares an ``input_shape`` (all of `layerwise.zoo` does).
        draws: Number of networks to draw.
        key: PRNG key of the ensemble.
        scheme: Draw the networks under this scheme of `layerwise.initialize`.
        cap: As for `layerwise.initialize`.
        redraw: How networks are drawn where no scheme is given: see `measure`.
        chunk: Draws per compiled call: see `measure`.
        batch_size: Draws computed at once: see `measure`.
        loss: Function of the output whose gradient goes back: see `measure`.
        kwargs: Keyword arguments of the model's call.
        rngs: Keys of the streams that the call draws from.
        statistics: What else is measured of every value: see `measure`.
        select: What to measure, by layer path: see `measure`.
        mesh: Devices to measure on: see `measure`.
        progress: Called with (draws done, draws in all).
        title: Title of the report; the model's name if None.

    Returns:
        The report: print it, `plot` it, take its `table` or its tidy `to_frame`.
        Predictions are eq. (4) and (5) with Table 1, with the weights' measured
        variance (the scheme's own, under a scheme) and the inputs' own second moment.
        Where the model is no chain of layers there are none, and the report says why.

    Raises:
        LayerwiseError: As `measure` and `layerwise.initialize`.

    Example:
        >>> report = propagate_variance(lw.zoo.f34(width=4, image_size=32), draws=2)
        >>> list(report.table().columns)[:5]
        ['layer', 'path', 'q_mean', 'q_sem', 'q_median']

    References:
        [Henmi2020] eq. (4), (5), Table 1.
    """
    exact: Mapping[str, float] | None = None
    if scheme is not None:
        law = scheme_law(model, inputs, scheme, cap=cap, params=params, kwargs=kwargs)
        redraw, exact = law, law.variances
    measurement = measure(
        model,
        params,
        inputs,
        draws=draws,
        key=key,
        redraw=redraw,
        chunk=chunk,
        batch_size=batch_size,
        loss=loss,
        kwargs=kwargs,
        rngs=rngs,
        statistics=statistics,
        select=select,
        mesh=mesh,
        progress=progress,
    )
    predicted, reason = predict_beside(measurement, exact)
    name = measurement.traced.model.name
    return VarianceReport(
        measurement,
        predicted,
        reason,
        title or (f"{name}, {scheme}" if scheme else name),
    )


def predict_beside(
    measurement: Measurement, variances: Mapping[str, float] | None = None
) -> tuple[dict[str, np.ndarray], str]:
    """Returns eq. (4), (5) for a measured model, or why they do not apply.

    Args:
        measurement: Gives the model, and the scales of weights, biases and inputs.
        variances: Layer path -> weight variance, where it is known exactly.
    """
    m = measurement
    rows = m.ensemble
    paths = m.layer_paths
    weights = dict(zip(paths, m.weight_variance[rows].mean(axis=0), strict=True))
    biases = dict(zip(paths, m.bias_variance[rows].mean(axis=0), strict=True))
    q_0 = float(m.curve("forward")[0, 0])
    try:
        got = predict_recursion(
            m.traced,
            variances or weights,
            bias_variance=biases,
            q_0=q_0,
            r_last=float(np.nanmean(m.curve("backward")[rows, -1])),
        )
    except UnsupportedModelError as error:
        return {}, str(error)
    return {"forward": np.concatenate([[q_0], got.q]), "backward": got.r}, ""
