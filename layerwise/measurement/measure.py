"""The public call: a model in, its moments over many networks out."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from layerwise.errors import InvalidArgumentError, ParametersError, message
from layerwise.measurement import ensemble, redraw as laws
from layerwise.measurement.coverage import Select, selected, untapped
from layerwise.measurement.fast_cpu import faster_draw, override_for
from layerwise.measurement.result import Measurement, from_ensemble
from layerwise.measurement.sharding import layout
from layerwise.measurement.statistics import WEIGHT_GRADIENT, outputs, select as named
from layerwise.measurement.tapped_model import TappedModel
from layerwise.tracing import TracedModel, trace
from layerwise.tracing.graph import from_jaxpr
from layerwise.tracing.model import check_params
from layerwise.tracing.prepare import prepare
from layerwise.tracing.sites import all_values, layer_runs
from layerwise.types import PyTree


def measure(
    model: Any,
    params: PyTree = None,
    inputs: Any = None,
    *,
    draws: int = 16,
    key: jax.Array | None = None,
    redraw: str | Callable[[jax.Array], PyTree] = "auto",
    chunk: int | None = None,
    batch_size: int | None = None,
    loss: Callable[[PyTree], jax.Array] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    rngs: Mapping[str, jax.Array] | None = None,
    statistics: Sequence[str] = (),
    select: Select | None = None,
    rewrite: bool = True,
    mesh: jax.sharding.Mesh | None = None,
    progress: ensemble.Progress | None = None,
) -> Measurement:
    """Measures the moments of every layer, forward and backward, over random networks.

    One compiled program draws a network, runs it forward and backward once, and returns
    mean and variance of every layer's value and of its cotangent; it is repeated over
    the draws in memory that does not grow with their number. Moments are those of one
    array's entries (over examples, positions and channels), in float32 (in a tree of
    additions: error near 1e-6), or in float64 where the model computes in it.
    Embeddings are measured too, layers in a scan iteration by iteration, those in a
    branch of a cond where it is taken, and those in a while forward, on average over
    its iterations; `Measurement.untapped` lists what could not be looked into.

    Args:
        model: A Flax module (Linen, NNX), unmodified, or ``apply(params, *inputs)``.
        params: One set of parameters, measured as it is besides the ensemble; or one
            stacked over draws, as ``jax.vmap(model.init)`` makes it; or None.
        inputs: The data, batch axis first; a tuple for several. None for standard
            normal inputs where the model declares an ``input_shape``.
        draws: Number of networks to draw; ignored for stacked parameters.
        key: PRNG key of the ensemble; `jax.random.key(0)` if None.
        redraw: How networks are drawn: "init" (by the model's own), "resample" (leaf by
            leaf, zero-mean normal with the second moment of the leaf given), "auto"
            (the first where `params` could be from it, else the second), or a function
            ``key -> params``.
        chunk: Draws per compiled call (the grain of `progress`); at most 16 if None.
        batch_size: Draws computed at once under `jax.vmap`; chosen by the size of the
            layers if None.
        loss: Function of the model's output whose gradient goes back. None for
            independent cotangents of +1 or -1 at every output, so that r_L = 1.
        kwargs: Keyword arguments of the model's call, such as ``{"train": True}``.
        rngs: Keys of the streams that the call draws from, by name (Linen).
        statistics: What is measured of every value and cotangent beside mean and
            variance: names of `layerwise.measurement.statistics.REGISTRY`, such as
            "zeros", "cosine_examples", "effective_rank"; "weight_gradient" adds the
            second moment of the gradient of each layer's weights.
        select: What to measure: a glob of layer paths (``"encoder/*"``), several, or
            a predicate on them; None for all. The input and the last layer stay.
        rewrite: On CPU, evaluate input gradients of convolutions and of max pooling by
            faster equivalents, equal to rounding.
        mesh: Devices to measure on, also those of other processes: its first axis takes
            the draws, a second one the batch. Parameters sharded over the mesh stay so.
            Numbers are those of one device up to rounding. None for one device.
        progress: Called with (draws done, draws in all).

    Returns:
        The measurement. If interrupted from the keyboard, what was measured so far
        (`Measurement.draws_done`).

    Raises:
        InvalidArgumentError: If ``draws < 1`` or an option is unknown.
        InputError: If inputs are missing, of the wrong rank or dtype, NaN, infinite or
            all zero.
        ParametersError: If `params` do not belong to the model or are not finite.
        UnsupportedModelError: If the model has no weights, has a layer of fan-in 0, or
            computes with complex numbers.
        OutOfMemoryError: If the networks computed at once do not fit on the device.

    Example:
        >>> model = lw.zoo.f34(width=4, image_size=32)
        >>> m = measure(model, draws=4)
        >>> m.curve("forward").shape  # 4 networks; q_0 and 34 layers
        (4, 35)
    """
    _check_count("draws", draws)
    for name, value in (("chunk", chunk), ("batch_size", batch_size)):
        if value is not None:
            _check_count(name, value)
    asked = named(statistics)
    key = jax.random.key(0) if key is None else key
    data_key = jax.random.fold_in(key, 2**31 - 1)
    ready = prepare(model, params, inputs, kwargs=kwargs, rngs=rngs, key=data_key)
    function, arrays, given = ready.model, ready.inputs, ready.given
    stacked = _stacked(ready.own, given)
    if stacked:
        draws = jax.tree.leaves(given)[0].shape[0]
        one = jax.tree.map(lambda x: x[0], given)
    else:
        one = ready.example
    check_params(function, one, ready.own)
    if stacked:
        like_them = laws.resampler(one, given)
        chosen, law = laws.Redraw(like_them, "as given, stacked over draws"), None
    else:
        chosen = laws.choose(redraw, function, given, arrays)
        law = faster_draw(chosen.draw, rewrite)
    traced = trace(function, one, arrays)
    sites = all_values(traced)
    sites = sites if select is None else selected(sites, select)
    places = layout(mesh, arrays, given)
    tapped = TappedModel(
        traced,
        tuple((s.value, s.iteration) for s in sites),
        override_for(traced, rewrite),
        loss,
        asked,
        WEIGHT_GRADIENT
        in ((statistics,) if isinstance(statistics, str) else statistics),
    )
    together = batch_size or automatic_batch(traced)
    if batch_size is None and together > 1 and law and _factorizes(law, key):
        together = 1
    raw = ensemble.run(
        tapped,
        arrays,
        law,
        key,
        draws=draws,
        given=None if stacked else given,
        stacked=given if stacked else None,
        chunk=chunk,
        batch_size=together,
        progress=progress,
        layout=places,
    )
    return from_ensemble(
        raw,
        outputs(asked),
        sites=sites,
        layer_paths=tuple(run.path for run in layer_runs(traced)),
        law=chosen.label,
        requested=draws,
        chunk=ensemble.chunk_size(
            draws + (given is not None and not stacked), chunk, places
        ),
        batch_size=together,
        traced=traced,
        inputs=arrays,
        draw=chosen.draw,
        untapped=untapped(traced),
    )


def _check_count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InvalidArgumentError(
            message(
                f"{name}={value!r}.",
                "It counts random networks: a whole number, at least 1.",
                f"Pass {name}=16.",
            )
        )


def _stacked(own: PyTree, params: PyTree) -> bool:
    """Returns whether every leaf has one leading axis more than the model's own."""
    leaves, expected = jax.tree.leaves(params), jax.tree.leaves(own)
    if not leaves or len(expected) != len(leaves):
        return False
    sizes = {np.shape(x)[:1] for x in leaves}
    more = all(
        np.shape(x)[1:] == y.shape for x, y in zip(leaves, expected, strict=True)
    )
    if more and len(sizes) > 1:
        raise ParametersError(
            message(
                f"Stacked parameters have leading axes of lengths {sorted(sizes)}.",
                "The leading axis counts the draws and must be the same everywhere.",
                "Make them with jax.vmap(model.init, (0, None))(keys, inputs).",
            )
        )
    return more and sizes != {()}


# Matrix factorizations, as orthogonal initializers draw with.
_FACTORIZATIONS = frozenset(
    ["qr", "geqrf", "geqp3", "householder_product", "svd", "eigh", "cholesky", "lu"]
)


def _factorizes(law: Callable[[jax.Array], PyTree], key: jax.Array) -> bool:
    """Whether networks are drawn by factorizing matrices.

    On CPU, many of those in one program wait for each other for ever under `jax.vmap`
    (jax 0.10.2: ``jit(vmap(init))`` of thirty orthogonal kernels, on two cores).
    """
    if jax.default_backend() != "cpu":
        return False
    drawn = from_jaxpr(jax.make_jaxpr(law)(key))
    return any(e.name in _FACTORIZATIONS for e in drawn.all_equations())


def automatic_batch(traced: TracedModel) -> int:
    """Returns how many draws to compute at once.

    A batch of networks turns small matrix products into one larger one, which pays
    while a product is smaller than the cost of its dispatch; a batch of convolutions
    turns into a grouped convolution, which does not pay on CPU at any size met.
    """
    if any(y.kind == "conv" for y in traced.all_layers()):
        return 1
    flops = [
        2.0 * y.connections.fan_in * np.prod(y.shape, dtype=float)
        for y in traced.all_layers()
    ]
    return int(np.clip(2e6 / np.median(flops), 1, 64))
