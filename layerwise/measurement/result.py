"""What was measured, and its statistics over draws."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from layerwise.errors import InvalidArgumentError, message
from layerwise.measurement.ensemble import GIVEN, Ensemble
from layerwise.tracing import TracedModel
from layerwise.tracing.sites import NamedValue
from layerwise.types import PyTree


if TYPE_CHECKING:
    import pandas


STATISTICS = ("mean", "variance", "second_moment")


SHOWN = 40
"""Rows at either end of a table that is printed in part."""


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Measurement:
    """Moments of an ensemble of networks, site by site.

    Arrays have axes ``(draw, site)``. The first draw may be the network that was given,
    number -1; `ensemble` is a mask of the others.

    Attributes:
        sites: Where was measured, in program order.
        draws: Number of each network; -1 for the given one.
        mean: ``{"forward": ..., "backward": ...}``, of values and of cotangents.
        variance: The same, about the mean.
        read: The same: whether it was computed. A branch that a draw did not take was
            not, nor are cotangents that a `jax.lax.while_loop` keeps back.
        other: Name -> the same as `mean`, for the statistics that were asked for.
        weight_variance: ``(draw, layer)``: second moment of the weights in use.
        bias_variance: ``(draw, layer)``: second moment of the biases in use.
        weight_gradient: ``(draw, layer)``: second moment of the entries of the gradient
            of the weights in use; None if not asked for.
        layer_paths: Path of each layer, numbers 1, 2, ...
        law: How the ensemble was drawn, in words.
        requested: Number of draws that were asked for.
        chunk: Draws per compiled call.
        batch_size: Draws measured at once under `jax.vmap`.
        traced: The model as it was traced.
        inputs: What it was run on.
        draw: ``key -> params``: a network of the ensemble's law; of stacked parameters,
            one with their second moments. None where there is only the given network.
        untapped: Equations that hold weights and were not looked into, or through which
            no cotangent goes, in words.
    """

    sites: tuple[NamedValue, ...]
    draws: np.ndarray
    mean: dict[str, np.ndarray]
    variance: dict[str, np.ndarray]
    read: dict[str, np.ndarray]
    other: dict[str, dict[str, np.ndarray]]
    weight_variance: np.ndarray
    bias_variance: np.ndarray
    layer_paths: tuple[str, ...]
    law: str
    requested: int
    chunk: int
    batch_size: int
    traced: TracedModel
    inputs: tuple[Any, ...] = ()
    draw: Callable[[jax.Array], PyTree] | None = None
    untapped: tuple[str, ...] = ()
    weight_gradient: np.ndarray | None = None

    @property
    def ensemble(self) -> np.ndarray:
        """Mask of the drawn networks; of the given one where no other was drawn."""
        drawn = self.draws != GIVEN
        return drawn if drawn.any() else ~drawn

    @property
    def draws_done(self) -> int:
        """Number of drawn networks that were measured."""
        return int(np.count_nonzero(self.draws != GIVEN))

    def second_moment(self, direction: str) -> np.ndarray:
        """Returns ``E[x**2]`` over entries, ``(draw, site)``."""
        return self.variance[direction] + np.square(self.mean[direction])

    def statistic(self, name: str, direction: str = "forward") -> np.ndarray:
        """Returns one statistic of every site, ``(draw, site)``.

        Args:
            name: "mean", "variance", "second_moment", or an output of a statistic that
                was asked for, such as "dead_fraction".
            direction: "forward" or "backward".

        Raises:
            InvalidArgumentError: If it was not measured.
        """
        match name:
            case "mean":
                return self.mean[direction]
            case "variance":
                return self.variance[direction]
            case "second_moment":
                return self.second_moment(direction)
        if name not in self.other:
            raise InvalidArgumentError(
                message(
                    f"{name!r} was not measured.",
                    f"What was: {', '.join(self.statistic_names)}.",
                    "Ask for it: measure(..., statistics=[...]).",
                )
            )
        return self.other[name][direction]

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """Names of what was measured of every site."""
        return (*STATISTICS, *self.other)

    def summary(
        self, direction: str = "forward", name: str = "second_moment"
    ) -> "Summary":
        """Returns a statistic's mean, standard error and quantiles over the ensemble.

        Its arrays have one entry per site.
        """
        return summarize(self.statistic(name, direction)[self.ensemble])

    def log_covariance(self, direction: str = "forward") -> np.ndarray:
        """Returns the covariance over the ensemble of log q across layers.

        Deep networks' q are products of factors that vary from draw to draw: log q is
        nearly normal, and what happens to one layer happens to those behind it.

        Returns:
            ``(L + 1, L + 1)``, for the points of `curve`. NaN where fewer than two
            draws are finite and positive at both.
        """
        return log_covariance(self.curve(direction)[self.ensemble])

    def find(self, kind: str, layer: int) -> int:
        """Returns the column of a site. `z` falls back to `v`, and `v` to `u`.

        A layer whose activation or pooling is missing has one value for both.
        """
        for k in {"z": ("z", "v", "u"), "v": ("v", "u")}.get(kind, (kind,)):
            for i, site in enumerate(self.sites):
                if (site.kind, site.layer) == (k, layer):
                    return i
        raise KeyError(f"no site {kind!r} at layer {layer}")

    def curve(self, direction: str) -> np.ndarray:
        """Returns the curve of the papers, ``(draw, point)``.

        Forward: q_0 at the input, then q_l = E[u_l^2], L + 1 points. Backward: r_l =
        E[(dE/dz_l)^2], l = 0 ... L. The point of the input is NaN where the model has
        no single floating-point input.
        """
        second = self.second_moment(direction)
        kind = "u" if direction == "forward" else "z"
        out = np.full((len(self.draws), len(self.layer_paths) + 1), np.nan)
        for layer in range(out.shape[1]):
            try:
                column = self.find(kind if layer else "input", layer)
            except KeyError:
                continue
            out[:, layer] = second[:, column]
        return out

    def nonfinite(self, direction: str | None = None) -> dict[int, str]:
        """Returns draw -> the first place where it left the finite numbers.

        Args:
            direction: "forward" or "backward"; None for whichever comes first (a draw
                that overflows forward does so backward too).
        """
        found: dict[int, str] = {}
        for side in (direction,) if direction else ("forward", "backward"):
            bad = ~np.isfinite(self.second_moment(side)) & self.read[side]
            for row in np.flatnonzero(bad.any(axis=1)):
                order = np.flatnonzero(bad[row])
                site = self.sites[order[0] if side == "forward" else order[-1]]
                place = f"{side} at {site.path} ({site.kind})"
                found.setdefault(int(self.draws[row]), place)
        return dict(sorted(found.items()))

    def __str__(self) -> str:
        """Second moments of every site, mean and standard error over networks."""
        count = int(np.count_nonzero(self.ensemble))
        lines = [f"{count} network{'s' * (count != 1)}, {self.law}."]
        lines += [
            f"Draw {n}: not finite, {where}." for n, where in self.nonfinite().items()
        ][:3]
        lines += [f"Not measured: {what}." for what in self.untapped]
        heads = " ".join(f"{name:>11} {'s.e.':>8}" for name in ("E[x^2]", "E[dx^2]"))
        lines.append(f"{'layer':>5} {'':9} {heads} path")
        forward, backward = (self.summary(d) for d in ("forward", "backward"))
        for i, site in enumerate(self.sites):
            hidden = len(self.sites) - 2 * SHOWN
            if hidden > 0 and i == SHOWN:
                lines.append(f"  ... {hidden} more, in to_frame()")
            if SHOWN <= i < len(self.sites) - SHOWN:
                continue
            numbers = " ".join(
                f"{s.mean[i]:>11.4g} {s.sem[i]:>8.2g}" for s in (forward, backward)
            )
            lines.append(f"{site.layer:>5} {site.kind:9} {numbers} {site.path}")
        return "\n".join(lines)

    __repr__ = __str__

    def to_frame(self) -> "pandas.DataFrame":
        """Returns one row per layer, site, direction, draw and statistic.

        Weight gradients, if measured, are rows of the kind "weight" with the statistic
        "second_moment".
        """
        import pandas as pd

        names, n = self.statistic_names, len(self.draws)
        places = [(s.layer, s.path, s.kind) for s in self.sites]
        weights = [(i + 1, path, "weight") for i, path in enumerate(self.layer_paths)]
        tables = [
            (places, side, names, np.stack([self.statistic(k, side) for k in names]))
            for side in ("forward", "backward")
        ]
        if self.weight_gradient is not None:
            gradients = self.weight_gradient[None]
            tables.append((weights, "backward", ("second_moment",), gradients))
        parts = []
        for rows, side, statistics, values in tables:  # values: (statistic, draw, row)
            layer, path, kind = (
                np.repeat(np.array(column, object), len(statistics) * n)
                for column in zip(*rows, strict=True)
            )
            parts.append(
                pd.DataFrame(
                    {
                        "layer": layer.astype(int),
                        "path": path,
                        "kind": kind,
                        "direction": side,
                        "draw": np.tile(self.draws, len(rows) * len(statistics)),
                        "statistic": np.tile(np.repeat(statistics, n), len(rows)),
                        "value": values.transpose(2, 0, 1).ravel(),
                    }
                )
            )
        return pd.concat(parts, ignore_index=True)


@dataclasses.dataclass(frozen=True)
class Summary:
    """Statistics over draws of a curve, one number per point.

    Attributes:
        mean: Mean over finite draws; what theory predicts.
        sem: Its standard error.
        median: What a person looking at one network is likely to see.
        low: 16 % quantile.
        high: 84 % quantile.
        count: Number of finite draws.
    """

    mean: np.ndarray
    sem: np.ndarray
    median: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: np.ndarray


def summarize(samples: np.ndarray) -> Summary:
    """Summarizes ``(draw, point)`` over draws, those that are not finite left out."""
    finite = np.isfinite(samples)
    count = finite.sum(axis=0)
    held = np.where(finite, samples, np.nan)

    def over_draws(function: Callable[[np.ndarray], float]) -> np.ndarray:
        kept = (column[~np.isnan(column)] for column in held.T)
        return np.array([function(c) if c.size else np.nan for c in kept])

    return Summary(
        mean=over_draws(np.mean),
        sem=over_draws(
            lambda c: np.std(c, ddof=1) / np.sqrt(c.size) if c.size > 1 else np.nan
        ),
        median=over_draws(np.median),
        low=over_draws(lambda c: np.quantile(c, 0.16)),
        high=over_draws(lambda c: np.quantile(c, 0.84)),
        count=count,
    )


def log_covariance(samples: np.ndarray) -> np.ndarray:
    """Returns the covariance over draws of the logarithm of ``(draw, point)``.

    Each pair of points takes the draws in which both are finite and positive.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(samples)
    there = np.isfinite(logs)
    held = np.where(there, logs, 0.0)
    weight = there.astype(float)
    count = weight.T @ weight
    with np.errstate(divide="ignore", invalid="ignore"):
        centre = held.sum(axis=0) / there.sum(axis=0)
        held = np.where(there, logs - centre, 0.0)
        # Each point's mean over the draws that the other point has too.
        mean = held.T @ weight / count
        covariance = (held.T @ held - count * mean * mean.T) / (count - 1)
    return np.where(count > 1, covariance, np.nan)


def from_ensemble(
    ensemble: Ensemble, names: tuple[str, ...], **fields: object
) -> Measurement:
    """Builds a `Measurement` from raw statistics and the other fields.

    Args:
        ensemble: The raw statistics.
        names: Names of those after mean and variance.
        **fields: The other attributes.
    """
    sides = {"forward": ensemble.forward, "backward": ensemble.backward}
    return Measurement(
        draws=ensemble.draws,
        mean={name: raw[..., 0] for name, raw in sides.items()},
        variance={name: raw[..., 1] for name, raw in sides.items()},
        read={"forward": ensemble.forward_read, "backward": ensemble.backward_read},
        other={
            name: {side: raw[..., 2 + i] for side, raw in sides.items()}
            for i, name in enumerate(names)
        },
        weight_variance=ensemble.weight,
        bias_variance=ensemble.bias,
        weight_gradient=ensemble.weight_gradient,
        **fields,  # type: ignore[arg-type]
    )
