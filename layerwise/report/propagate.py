"""`propagate_variance`: measure, predict, compare, in one call."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from layerwise.initializers import scheme_law
from layerwise.measurement import measure
from layerwise.measurement.coverage import Select
from layerwise.measurement.ensemble import Progress
from layerwise.report.report import VarianceReport
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
    method: str | None = "kernel",
    title: str | None = None,
) -> VarianceReport:
    """Measures every layer of a model over random networks, and predicts it beside.

    The prediction is that of `layerwise.predict`, of the same networks on the same
    inputs, but that nothing is sampled for it: what has no sound rule is left out.
    It takes about as long as measuring a few networks, most often less, and is given up
    (the report says so) after a minute and as long as measuring took.

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
        chunk: As for `measure`, and so for the next two.
        batch_size: Draws computed at once.
        loss: Function of the output whose gradient goes back.
        kwargs: Keyword arguments of the model's call.
        rngs: Keys of the streams that the call draws from.
        statistics: What else is measured of every value: see `measure`.
        select: What to measure, by layer path: see `measure`.
        mesh: Devices to measure on: see `measure`.
        progress: Called with (draws done, draws in all).
        method: What is predicted beside: "kernel", "sitewise", "recursion" (eq. (4) and
            (5) of the paper), as for `layerwise.predict`; None for nothing.
        title: Title of the report; the model's name if None.

    Returns:
        The report: print it, `plot` it, take its `table` or its tidy `to_frame`. Each
        predicted number has a grade, and the tolerance that its rules state. Where
        there is no prediction the report says why; with a `loss` there is none
        backward, as predictions start from independent cotangents.

    Raises:
        LayerwiseError: As `measure` and `layerwise.initialize`.

    Example:
        >>> report = propagate_variance(lw.zoo.f34(width=4, image_size=32), draws=2)
        >>> list(report.table().columns)[:5]
        ['layer', 'path', 'q_mean', 'q_sem', 'q_median']

    References:
        [Henmi2020] eq. (4), (5), Table 1.
    """
    theory = None if method is None else _theory(method)
    if scheme is not None:
        redraw = scheme_law(
            model, inputs, scheme, cap=cap, params=params, kwargs=kwargs, rngs=rngs
        )
    start = time.perf_counter()
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
    prediction, reason = None, "none was asked for"
    if theory is not None:
        took = time.perf_counter() - start
        prediction, reason = theory(measurement, took=took, own_loss=loss is not None)
    name = measurement.traced.model.name
    title = title or (f"{name}, {scheme}" if scheme else name)
    return VarianceReport(measurement, prediction, reason, title)


def _theory(method: str) -> Callable[..., tuple[Any, str]]:
    # SciPy's part of theory takes a second to import: where it is wanted alone.
    from layerwise.report.beside import predict_beside
    from layerwise.theory.predict import check_method

    check_method(method)
    return functools.partial(predict_beside, method=method)
