"""Watching a network while it trains: the same numbers, of the parameters of now."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from layerwise.errors import InvalidArgumentError, LayerwiseError, message
from layerwise.measurement.ensemble import GIVEN, Ensemble
from layerwise.measurement.result import Measurement, from_ensemble
from layerwise.measurement.tapped_model import TappedModel
from layerwise.report.report import VarianceReport
from layerwise.tracing import TracedModel, trace
from layerwise.tracing.model import as_function
from layerwise.tracing.sites import NamedValue, all_values, layer_runs
from layerwise.types import PyTree


class NonFiniteError(LayerwiseError, FloatingPointError):
    """NaN or infinity appeared in training."""


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """The layers of a network at one step of its training.

    Attributes:
        step: Number of the call.
        loss: The loss there.
        measurement: Moments of every layer, forward and of the loss's own cotangents.
        nonfinite: The first place that is not finite, as "forward at Dense_0 (u)" or
            "backward at ..."; empty where all is finite.
    """

    step: int
    loss: float
    measurement: Measurement
    nonfinite: str

    def report(self) -> VarianceReport:
        """Returns the report of this network: table, curves, page."""
        return VarianceReport(
            self.measurement, None, "a network in training", f"step {self.step}"
        )

    def as_record(self) -> dict[str, Any]:
        """Returns the numbers as one line of JSON takes them."""
        m = self.measurement
        values = {}
        for direction in ("forward", "backward"):
            rms = np.sqrt(m.second_moment(direction)[0])
            for site, value in zip(m.sites, rms, strict=True):
                name = f"{direction}/{site.layer:03d} {site.path}/{site.kind}"
                values.setdefault(name, float(value) if np.isfinite(value) else None)
        return {
            "step": self.step,
            "loss": self.loss if np.isfinite(self.loss) else None,
            "nonfinite": self.nonfinite,
            "root_mean_square": values,
        }


class Monitor:
    """``value_and_grad`` of a loss that also looks at the layers: see `monitor`."""

    def __init__(
        self,
        loss_fn: Callable[..., Any],
        *,
        every: int,
        has_aux: bool,
        log: str | pathlib.Path | None,
        stop: bool,
    ) -> None:
        self.every = every
        self.step = 0
        self.snapshots: list[Snapshot] = []
        self._loss_fn, self._has_aux, self._stop = loss_fn, has_aux, stop
        self._gradient: Callable[..., Any] | None = None
        self._log = None if log is None else _Log(pathlib.Path(log))
        self._run: Callable[..., Any] | None = None
        self._traced: TracedModel | None = None
        self._sites: tuple[NamedValue, ...] = ()
        self._paths: tuple[str, ...] = ()
        self._spent, self._began = 0.0, 0.0

    def __call__(self, params: PyTree, *batch: Any) -> Any:
        """Returns what ``jax.value_and_grad(loss_fn)(params, *batch)`` does.

        Or what `nnx.value_and_grad` does, where `params` is an NNX module.
        """
        if self.step % self.every == 0:
            self.look(params, *batch)
        self.step += 1
        if self._gradient is not None:
            return self._gradient(params, *batch)
        from flax import nnx

        own = nnx if isinstance(params, nnx.Module) else jax
        self._gradient = own.jit(
            own.value_and_grad(self._loss_fn, has_aux=self._has_aux)
        )
        found = jax.block_until_ready(self._gradient(params, *batch))
        self._began, self._spent = time.perf_counter(), 0.0  # compiled: count from here
        return found

    def look(self, params: PyTree, *batch: Any) -> Snapshot:
        """Measures the layers now, whatever the step, and returns what was seen."""
        params, batch, loss_fn = _as_function(params, batch, self._loss_fn)
        if self._run is None:
            self._build(loss_fn, params, *batch)
        assert self._run is not None
        jax.block_until_ready((params, batch))  # the steps before are not its cost
        start = time.perf_counter()
        raw = jax.device_get(self._run(params, jax.tree.leaves(batch)))
        if self._began == 0.0:  # the first call compiled: count from its end
            self._began = time.perf_counter()
        else:
            self._spent += time.perf_counter() - start
        seen = self._snapshot(raw)
        self.snapshots.append(seen)
        if self._log is not None:
            self._log.write(seen)
        if seen.nonfinite and self._stop:
            raise NonFiniteError(
                message(
                    f"Step {seen.step}: values are not finite, first {seen.nonfinite}.",
                    "Every later step would be NaN.",
                    "Lower the learning rate, clip gradients, or start from "
                    "lw.initialize(...); monitor.snapshots[-2] is the last good one.",
                )
            )
        return seen

    @property
    def last(self) -> Snapshot | None:
        """The latest snapshot."""
        return self.snapshots[-1] if self.snapshots else None

    @property
    def overhead(self) -> float:
        """Share of the time since the first step that went into snapshots.

        Without compilation. A snapshot costs about one more step, forward and backward,
        so that this is near ``1 / every``.
        """
        passed = time.perf_counter() - self._began
        return self._spent / passed if self._began else 0.0

    def _build(self, loss_fn: Callable[..., Any], params: PyTree, *batch: Any) -> None:
        structure = jax.tree.structure(batch)

        def scalar(params: PyTree, *leaves: Any) -> jax.Array:
            out = loss_fn(params, *jax.tree.unflatten(structure, leaves))
            return out[0] if self._has_aux else out

        leaves = jax.tree.leaves(batch)
        traced = trace(as_function(scalar), params, tuple(leaves))
        sites = self._sites = all_values(traced)
        self._paths = tuple(r.path for r in layer_runs(traced))
        tapped = TappedModel(
            traced, tuple((s.value, s.iteration) for s in sites), loss=lambda x: x
        )
        key = jax.random.key(0)  # of cotangents that a loss does not need

        def run(params: PyTree, leaves: list[Any]) -> dict[str, jax.Array]:
            return {
                **tapped.run(params, leaves, key, None),
                "loss": scalar(params, *leaves),
            }

        self._traced, self._run = traced, jax.jit(run)

    def _snapshot(self, raw: dict[str, Any]) -> Snapshot:
        traced = self._traced
        assert traced is not None
        sides: dict[str, np.ndarray] = {}
        for side in ("forward", "backward"):
            mean, second = np.moveaxis(np.asarray(raw[side], np.float64)[None], -1, 0)
            with np.errstate(invalid="ignore"):  # inf - inf, reported as not finite
                variance = np.maximum(second - np.square(mean), 0.0)
            there = second != -1  # see `absent`
            raw_moments = np.stack([mean, np.where(there, variance, np.nan)], axis=-1)
            sides |= {side: raw_moments, f"{side}_read": there}
        ensemble = Ensemble(
            draws=np.array([GIVEN]),
            weight=np.asarray(raw["weight"], np.float64)[None],
            bias=np.asarray(raw["bias"], np.float64)[None],
            **sides,
        )
        measurement = from_ensemble(
            ensemble,
            names=(),
            sites=self._sites,
            layer_paths=self._paths,
            law=f"the parameters of step {self.step}",
            requested=1,
            chunk=1,
            batch_size=1,
            traced=traced,
        )
        first = next(iter(measurement.nonfinite().values()), "")
        return Snapshot(self.step, float(raw["loss"]), measurement, first)


def _as_function(
    params: Any, batch: tuple[Any, ...], loss_fn: Callable[..., Any]
) -> tuple[PyTree, tuple[Any, ...], Callable[..., Any]]:
    """Returns weights, what else goes in, and the loss of both.

    Of an NNX module the weights are split off; it stays as it is, for its counts and
    running statistics are copied.
    """
    from flax import nnx

    if not isinstance(params, nnx.Module):
        return params, batch, loss_fn
    graph, weights, rest = nnx.split(params, nnx.Param, ...)

    def loss(weights: PyTree, rest: PyTree, *batch: Any) -> Any:
        return loss_fn(nnx.merge(graph, weights, rest, copy=True), *batch)

    return weights, (rest, *batch), loss


class _Log:
    """One JSON line a snapshot, and TensorBoard scalars where tensorboardX is."""

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = folder / "layers.jsonl"
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            self._scalars = None
        else:
            self._scalars = SummaryWriter(str(folder))

    def write(self, seen: Snapshot) -> None:
        record = seen.as_record()
        with self._lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._scalars is not None:
            for name, value in record["root_mean_square"].items():
                if value is not None:
                    self._scalars.add_scalar(f"layers/{name}", value, seen.step)
            self._scalars.flush()


def monitor(
    loss_fn: Callable[..., Any],
    *,
    every: int = 100,
    has_aux: bool = False,
    log: str | pathlib.Path | None = None,
    stop_on_nonfinite: bool = False,
) -> Monitor:
    """Watches the layers of a network while it trains.

    What is returned stands for ``jax.value_and_grad(loss_fn)``. At every `every`-th
    call, a second compiled program measures the layers at the parameters and the batch
    of that call, forward and back from the loss itself. It costs about one step more
    (`Monitor.overhead` says how much was spent), and nothing at the other calls.
    Moments are in float32: a root mean square below 1e-19 or above 1e19 reads 0 or
    infinite.

    Args:
        loss_fn: ``(params, *batch) -> loss``, a scalar; any trees; a function that
            `jax.jit` takes. For an NNX module ``(module, *batch) -> loss``; what is
            returned then stands for `nnx.value_and_grad`.
        every: Calls between two snapshots.
        has_aux: As in `jax.value_and_grad`.
        log: A folder for ``layers.jsonl`` and, where tensorboardX is installed, its
            scalars; None for no files.
        stop_on_nonfinite: Raise at a snapshot that is not finite.

    Returns:
        The monitor. `Monitor.last` is the latest snapshot; its `report()` has table and
        curves, its `nonfinite` the first layer and direction that left the finite
        numbers.

    Raises:
        InvalidArgumentError: If ``every < 1``.
        UnsupportedModelError: At the first call, if the loss holds no weights.

    Example:
        >>> model = lw.zoo.mlp(input_shape=(8,), widths=(16, 16))
        >>> x = jnp.ones((4, 8))
        >>> params = model.init(jax.random.key(0), x)
        >>> step = monitor(lambda p, x: jnp.mean(model.apply(p, x) ** 2), every=10)
        >>> loss, gradients = step(params, x)
        >>> step.last.report().measurement.layer_paths
        ('Dense_1', 'Dense_2', 'Dense_3')
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise InvalidArgumentError(
            message(
                f"every={every!r}.",
                "It counts the calls from one snapshot to the next.",
                "Pass every=100.",
            )
        )
    return Monitor(
        loss_fn, every=every, has_aux=has_aux, log=log, stop=stop_on_nonfinite
    )
