"""What was measured, and its statistics over draws."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from layerwise.measurement.ensemble import GIVEN, Ensemble
from layerwise.tracing import TracedModel
from layerwise.tracing.sites import NamedValue


if TYPE_CHECKING:
    import pandas


STATISTICS = ("mean", "variance", "second_moment")


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """Moments of an ensemble of networks, site by site.

    Arrays have axes ``(draw, site)``. The first draw may be the network that was given,
    number -1; `ensemble` is a mask of the others.

    Attributes:
        sites: Where was measured, in program order.
        draws: Number of each network; -1 for the given one.
        mean: ``{"forward": ..., "backward": ...}``, of values and of cotangents.
        variance: The same, about the mean.
        weight_variance: ``(draw, layer)``: second moment of the weights in use.
        bias_variance: ``(draw, layer)``: second moment of the biases in use.
        layer_paths: Path of each layer, numbers 1, 2, ...
        law: How the ensemble was drawn, in words.
        requested: Number of draws that were asked for.
        chunk: Draws per compiled call.
        batch_size: Draws measured at once under `jax.vmap`.
        traced: The model as it was traced.
        untapped: Equations that hold weights and were not looked into, in words.
    """

    sites: tuple[NamedValue, ...]
    draws: np.ndarray
    mean: dict[str, np.ndarray]
    variance: dict[str, np.ndarray]
    weight_variance: np.ndarray
    bias_variance: np.ndarray
    layer_paths: tuple[str, ...]
    law: str
    requested: int
    chunk: int
    batch_size: int
    traced: TracedModel = dataclasses.field(repr=False)
    untapped: tuple[str, ...] = ()

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

    def nonfinite(self) -> dict[int, str]:
        """Returns draw -> the first place where it left the finite numbers."""
        found: dict[int, str] = {}
        for row, number in enumerate(self.draws):
            for direction in ("forward", "backward"):
                bad = ~np.isfinite(self.second_moment(direction)[row])
                if bad.any():
                    order = np.flatnonzero(bad)
                    at = order[0] if direction == "forward" else order[-1]
                    site = self.sites[at]
                    found[int(number)] = f"{direction} at {site.path} ({site.kind})"
                    break
        return found

    def to_frame(self) -> "pandas.DataFrame":
        """Returns one row per layer, site, direction, draw and statistic."""
        import pandas as pd

        parts = []
        for direction in ("forward", "backward"):
            values = {
                "mean": self.mean[direction],
                "variance": self.variance[direction],
                "second_moment": self.second_moment(direction),
            }
            for column, site in enumerate(self.sites):
                for statistic in STATISTICS:
                    parts.append(
                        pd.DataFrame(
                            {
                                "layer": site.layer,
                                "path": site.path,
                                "kind": site.kind,
                                "direction": direction,
                                "draw": self.draws,
                                "statistic": statistic,
                                "value": values[statistic][:, column],
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


def from_ensemble(ensemble: Ensemble, **fields: object) -> Measurement:
    """Builds a `Measurement` from raw statistics and the other fields."""
    sides = {"forward": ensemble.forward, "backward": ensemble.backward}
    return Measurement(
        draws=ensemble.draws,
        mean={name: raw[..., 0] for name, raw in sides.items()},
        variance={name: raw[..., 1] for name, raw in sides.items()},
        weight_variance=ensemble.weight,
        bias_variance=ensemble.bias,
        **fields,  # type: ignore[arg-type]
    )
