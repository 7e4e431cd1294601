"""The public call: a model in, the moments of every layer out, without measuring it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from layerwise.errors import InvalidArgumentError, did_you_mean, message
from layerwise.theory import examples, lags as lagging, law as laws
from layerwise.theory.context import Node
from layerwise.theory.engine import Engine
from layerwise.theory.prediction import DIRECTIONS, Prediction
from layerwise.theory.recursion import predict_recursion
from layerwise.theory.state import Grade
from layerwise.tracing import TracedModel, trace
from layerwise.tracing.model import check_params
from layerwise.tracing.prepare import Prepared, prepare
from layerwise.tracing.sites import NamedValue, all_values, named_values
from layerwise.tracing.uncollected import uncollected
from layerwise.tracing.unroll import Unrolled, unroll
from layerwise.types import PyTree


METHODS = ("kernel", "sitewise", "recursion")
Progress = Callable[[int, int], None]


def predict(
    model: Any,
    params: PyTree = None,
    inputs: Any = None,
    *,
    method: str = "kernel",
    law: Callable[[jax.Array], PyTree] | None = None,
    weight_variance: Mapping[str, float] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
    draws: int = 48,
    progress: Progress | None = None,
) -> Prediction:
    """Predicts the moments of every layer, forward and backward, over random networks.

    Args:
        model: A Flax module (Linen, NNX), unmodified, or ``apply(params, *inputs)``.
        params: One set of parameters: networks are leaf-by-leaf zero-mean with its
            second moments, constant leaves as they are. None for the model's own init.
        inputs: The data, batch axis first; None for standard normal inputs where the
            model declares an ``input_shape``.
        method: "kernel" (correlations between positions and examples, the real
            inputs), "sitewise" (the same with inputs taken for independent zero-mean
            entries), or "recursion" (eq. (4), (5) of the paper, chains only).
        law: ``key -> params``, traceable: the law of the networks, in place of what
            `params` says.
        weight_variance: Layer path -> variance of its weights, in place of the law's.
        kwargs: Keyword arguments of the model's call.
        rngs: Keys of the streams that the call draws from, by name (Linen).
        draws: Networks to run, where an equation without a sound rule is sampled; with
            0 none is, and what would depend on it is left out.
        progress: Called with (steps done, steps in all).

    Returns:
        The prediction, with a grade for every number. `exact`: in expectation, at any
        width. `approximate`: to order 1/width, and within `Prediction.tolerance`, which
        its rules state. `measured`: it depends on an equation that was sampled.

    Raises:
        InvalidArgumentError: If the method is unknown or there is nothing to draw from.
        InputError: If inputs are missing or hold no moments (NaN, infinite, zero).
        ParametersError: If `params` do not belong to the model or are not finite.
        UnsupportedModelError: If the model has no weights or branches on its data; with
            ``method="recursion"``, if it is no chain of layers.
    """
    check_method(method)
    ready = prepare(model, params, inputs, kwargs=kwargs, rngs=rngs)
    check_params(ready.model, ready.example, ready.own)
    traced = trace(ready.model, ready.example, ready.inputs, ready.once)
    moments = laws.refined(law_of(ready, law), traced, law)
    if weight_variance:
        moments = laws.with_variances(moments, traced, weight_variance)
    return predict_traced(
        traced, moments, ready.inputs, method=method, draws=draws, progress=progress
    )


def check_method(method: str) -> None:
    """Raises `InvalidArgumentError` unless there is such a method."""
    if method not in METHODS:
        raise InvalidArgumentError(
            message(
                f"method={method!r}.{did_you_mean(method, list(METHODS))}",
                f"The methods are {', '.join(METHODS)}.",
                'Pass method="kernel".',
            )
        )


@uncollected()
def predict_traced(
    traced: TracedModel,
    law: laws.Law,
    inputs: tuple[Any, ...],
    *,
    method: str = "kernel",
    draws: int = 48,
    progress: Progress | None = None,
) -> Prediction:
    """Predicts a model that is traced, on its inputs; see `predict`."""
    if method == "recursion":
        return _recursion(traced, law, inputs)
    unrolled = unroll(traced, inputs)
    sites = placed(traced, unrolled)
    make = functools.partial(
        Engine,
        unrolled.traced,
        law,
        inputs,
        frozenset(s.value for s in sites),
        independent=method == "sitewise",
    )
    engine, parts = examples.run(
        make, examples.both_ways, draws=draws, progress=progress
    )
    return _prediction(unrolled.traced, sites, engine, parts, method)


def law_of(
    ready: Prepared, draw: Callable[[jax.Array], PyTree] | None = None
) -> laws.Law:
    """Returns the moments of the networks: of `draw`, else of what was passed."""
    if draw is not None:
        return laws.of_init(lambda key, *_: draw(key), ready.inputs)
    if ready.given is not None:
        return laws.of_params(ready.given)
    assert ready.model.init is not None  # own_params has raised without one
    return laws.of_init(ready.model.init, ready.inputs, ready.once)


def placed(traced: TracedModel, unrolled: Unrolled) -> tuple[NamedValue, ...]:
    """Returns the sites of a model, at their values in its unrolled program."""
    return tuple(
        dataclasses.replace(s, value=unrolled.where[s.value, s.iteration])
        for s in all_values(traced)
        if (s.value, s.iteration) in unrolled.where
    )


def _prediction(
    traced: TracedModel,
    sites: tuple[NamedValue, ...],
    engine: Engine,
    parts: Sequence[Engine],
    method: str,
) -> Prediction:
    columns: dict[str, dict[str, list[Any]]] = {}
    # Correlated inputs under one kernel: the masks of neighbouring positions depend on
    # the weights together, and the cotangents with them (first layer on images).
    shared = method == "kernel" and any(y.kind == "conv" for y in traced.layers)
    for direction in DIRECTIONS:
        column: dict[str, list[Any]] = {k: [] for k in "mslght"}
        for site in sites:
            got = examples.moments_of(engine, parts, site.value, direction)
            if got is None:
                values = (np.nan, np.nan, np.nan, None, None, np.nan)
            else:
                grade = got.grade
                if direction == "backward" and grade is Grade.EXACT and shared:
                    grade = Grade.APPROXIMATE
                bound = np.nan if grade is Grade.MEASURED else got.tolerance
                with np.errstate(over="ignore", under="ignore"):
                    second = float(np.exp(got.log))
                values = (got.mean, second, got.log, grade, got.mean_grade, bound)
            for k, v in zip("mslght", values, strict=True):
                column[k].append(v)
        columns[direction] = column
    return Prediction(
        sites=sites,
        mean={d: np.array(columns[d]["m"]) for d in DIRECTIONS},
        second={d: np.array(columns[d]["s"]) for d in DIRECTIONS},
        log_second={d: np.array(columns[d]["l"]) for d in DIRECTIONS},
        grade={d: tuple(columns[d]["g"]) for d in DIRECTIONS},
        mean_grade={d: tuple(columns[d]["h"]) for d in DIRECTIONS},
        tolerance={d: np.array(columns[d]["t"]) for d in DIRECTIONS},
        sampled=dict(engine.reasons),
        draws=engine.sampler.draws,
        equations=sum(len(n.equations) for n in engine.nodes),
        factors=_factors(traced, engine),
        layer_paths=tuple(y.path for y in traced.layers),
        log_spread=_spread(traced),
        method=method,
        resolution=_resolution(parts),
        traced=traced,
    )


def _resolution(parts: Sequence[Engine]) -> str:
    held = {
        lagging.NONE: "Single positions: nothing here mixes them but fresh weights.",
        lagging.FEWEST: "Pairs of positions at lags of 1, 2, a quarter of a map and "
        "all of it, others interpolated (more would take too long).",
        lagging.SPARSE: "Pairs of positions at short lags and powers of two, others "
        "interpolated (the full kernels would not fit).",
        lagging.FULL: "All pairs of positions.",
        lagging.DENSE: "Pairs of positions: all on maps up to "
        f"{lagging.FULL_UP_TO} wide, above that by lag.",
    }
    text = held[parts[0].ctx.level]
    if len(parts) > 1:
        text += f" {len(parts)} groups of examples, each with moments of its own."
    if parts[0].ctx.classes == 2:
        text += " Pairs of examples too."
    return text


def _spread(traced: TracedModel) -> np.ndarray:
    widths = []
    for layer in traced.layers:
        axes = layer.shape[-1] if layer.shape else 1
        widths.append(max(int(axes), 1))
    steps = 5.0 / np.array(widths, float)
    return np.concatenate([[0.0], np.cumsum(steps)[:-1]]) if len(steps) else steps


_NAMES = {
    "conv_general_dilated": "weights",
    "dot_general": "weights",
    "pointwise": "activation",
    "normalization": "normalization",
    "add": "sum",
    "sub": "sum",
    "mul": "product",
    "reduce_window_max": "pooling",
    "reduce_max": "pooling",
    "reduce_window_sum": "pooling",
    "reduce_sum": "pooling",
}


def _factors(traced: TracedModel, engine: Engine) -> dict[str, dict[str, float]]:
    """Returns what each node multiplied the second moment by, per layer."""
    found: dict[str, dict[str, float]] = {}
    roots = [(y.root, y) for y in traced.layers]
    at = -1
    for node in engine.nodes:
        while at + 1 < len(roots) and roots[at + 1][0] <= node.output:
            at += 1
        if at < 0 or node.output not in engine.known:
            continue
        layer = roots[at][1]
        ratio = _ratio(engine, node)
        row = found.setdefault(layer.path, {})
        name = _NAMES.get(node.name, node.name)
        if name == "weights" and node.output == layer.root:
            fan = _fan(engine, node, layer.connections.fan_in)
            if fan > 0:
                row["fan"] = fan
                row["padding"] = ratio / fan
            continue
        row[name] = row.get(name, 1.0) * ratio
    return {
        p: {k: v for k, v in r.items() if abs(v - 1) > 1e-9} for p, r in found.items()
    }


def _ratio(engine: Engine, node: Node) -> float:
    after = engine.known[node.output].moments()[1]
    before = engine.state_of(node.inputs[0]).moments()[1]
    return float(np.exp(after - before)) if np.isfinite(before) else np.nan


def _fan(engine: Engine, node: Node, fan_in: int) -> float:
    flow = engine.traced.flow
    weights = [a for a in node.equations[0].inputs if not flow.is_signal(a)]
    return engine.ctx.weight(weights[0]).second * fan_in if weights else 0.0


def _recursion(traced: TracedModel, law: laws.Law, arrays: tuple) -> Prediction:
    """Eq. (4) and (5), in the form of a prediction."""
    weight, bias = {}, {}
    for y in traced.layers:
        weight[y.path] = max(_second(law, n) for n in y.weight_leaves)
        bias[y.path] = max([_second(law, n) for n in y.bias_leaves] or [0.0])
    value = traced.signal_input
    index = traced.input_values.index(value) if value in traced.input_values else 0
    q_0 = float(np.mean(np.square(np.asarray(arrays[index], np.float64))))
    got = predict_recursion(traced, weight, bias_variance=bias, q_0=q_0)
    sites = named_values(traced)
    nan = np.full(len(sites), np.nan)
    second = {"forward": nan.copy(), "backward": nan.copy()}
    grade = {d: [None] * len(sites) for d in DIRECTIONS}
    last = {y.index: y for y in traced.layers}
    for i, s in enumerate(sites):
        if s.layer == 0 or s.kind == "u":
            second["forward"][i] = q_0 if s.layer == 0 else got.q[s.layer - 1]
            grade["forward"][i] = Grade.APPROXIMATE  # type: ignore[call-overload]
        if s.layer == 0 or s.value == last[s.layer].z:
            second["backward"][i] = got.r[s.layer]
            grade["backward"][i] = Grade.APPROXIMATE  # type: ignore[call-overload]
    with np.errstate(divide="ignore"):
        logs = {d: np.log(v) for d, v in second.items()}
    empty: dict[str, tuple[Grade | None, ...]] = {
        d: (None,) * len(sites) for d in DIRECTIONS
    }
    return Prediction(
        sites=sites,
        mean={d: nan for d in DIRECTIONS},
        second=second,
        log_second=logs,
        grade={d: tuple(v) for d, v in grade.items()},
        mean_grade=empty,
        tolerance={d: np.full(len(sites), np.nan) for d in DIRECTIONS},
        sampled={},
        draws=0,
        equations=len(traced.graph.equations),
        factors={},
        layer_paths=tuple(y.path for y in traced.layers),
        log_spread=_spread(traced),
        method="recursion",
        resolution="One number per layer: eq. (4) and (5), Table 1.",
        traced=traced,
    )


def _second(law: laws.Law, name: str) -> float:
    leaf = law.leaves[name]
    if leaf.value is None:
        return leaf.second
    return float(np.mean(np.square(leaf.value)))
