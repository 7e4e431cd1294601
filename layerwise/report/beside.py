"""Theory beside a measurement: of the same networks, on the same inputs."""

import dataclasses
import time
from typing import Any

import numpy as np

from layerwise.errors import LayerwiseError
from layerwise.measurement import Measurement
from layerwise.theory import law as laws, predict as theory
from layerwise.theory.prediction import Prediction


PATIENCE = 60.0
"""Seconds that a prediction may always take."""


class _TooSlow(Exception):
    """The prediction has taken longer than it may."""


def predict_beside(
    measurement: Measurement, *, method: str, took: float, own_loss: bool
) -> tuple[Prediction | None, str]:
    """Returns the prediction for a measured model, or None and why there is none.

    Nothing is sampled: what has no sound rule was measured just now.

    Args:
        measurement: Gives the model, the law of its networks, and the inputs.
        method: As for `layerwise.predict`.
        took: Seconds that measuring took: the prediction may take as long, and at least
            `PATIENCE`.
        own_loss: Whether cotangents come from a loss of the caller's. Predictions start
            from independent ones of unit variance, so that there is none backward.
    """
    m, start, limit = measurement, time.perf_counter(), max(PATIENCE, took)

    def stop_late(done: int, total: int) -> None:
        if time.perf_counter() - start > limit:
            raise _TooSlow(f"{done} of {total} steps")

    assert m.draw is not None
    draw = m.draw
    try:
        law = laws.of_init(lambda key, *_: draw(key), m.inputs)
        law = laws.refined(law, m.traced, draw)
        found = theory.predict_traced(
            m.traced, law, m.inputs, method=method, draws=0, progress=stop_late
        )
    except _TooSlow as reached:
        said = f"it took more than {limit:.0f} s ({reached})"
        return None, f"{said}; lw.predict has no limit"
    except KeyboardInterrupt:
        return None, "it was interrupted"
    except LayerwiseError as error:
        return None, str(error).splitlines()[0]
    except Exception as error:  # a report must come all the same
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        return None, f"the theory engine failed, {said}"
    return (_without(found, "backward") if own_loss else found), ""


def _without(prediction: Prediction, direction: str) -> Prediction:
    """Returns a prediction with nothing said of one direction."""
    nothing = np.full(len(prediction.sites), np.nan)

    def less(sides: dict[str, Any], value: Any) -> dict[str, Any]:
        return sides | {direction: value}

    none = (None,) * len(prediction.sites)
    return dataclasses.replace(
        prediction,
        mean=less(prediction.mean, nothing),
        second=less(prediction.second, nothing),
        log_second=less(prediction.log_second, nothing),
        tolerance=less(prediction.tolerance, nothing),
        grade=less(prediction.grade, none),
        mean_grade=less(prediction.mean_grade, none),
    )
