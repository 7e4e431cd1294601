"""What several tests share. Import as `from helpers import ...`."""

import json
from pathlib import Path

import numpy as np

from layerwise.tracing import TracedModel, trace
from layerwise.tracing.prepare import prepare


def traced(model, inputs=None) -> TracedModel:
    """Returns a model traced on shapes of its parameters.

    Args:
        model: As for `layerwise.measure`.
        inputs: Its inputs; None where it declares an ``input_shape``.
    """
    ready = prepare(model, None, inputs)
    return trace(ready.model, ready.example, ready.inputs)


def assert_mean_close(samples, expected, *, n_sigma=5.0, bias=0.0):
    """Asserts that the mean of `samples` is `expected`, judged by its standard error.

    Args:
        samples: Independent draws, one number per network. Entries of one network are
            not independent of each other: average them first.
        expected: The exact mean, or an approximation of it, see `bias`.
        n_sigma: How many standard errors are allowed. At 5, a right answer fails about
            once in two million tests.
        bias: A known bound on how far `expected` itself may be from the mean.
    """
    samples = np.asarray(samples, np.float64)
    if samples.ndim != 1 or samples.size < 8:
        raise ValueError(
            f"samples must be at least 8 numbers, one per draw, not {samples.shape}."
        )
    mean = samples.mean()
    sem = samples.std(ddof=1) / np.sqrt(samples.size)
    # Constant samples have no standard error; their mean is still rounded.
    rounding = 4 * np.finfo(np.float32).eps * abs(expected)
    gap = abs(mean - expected)
    assert gap <= n_sigma * sem + bias + rounding, (
        f"mean {mean:.6g} of {samples.size} draws against {expected:.6g}: "
        f"{(gap - bias) / max(sem, np.finfo(float).tiny):.1f} standard errors apart "
        f"(standard error {sem:.3g}, allowed bias {bias:.3g})"
    )


F34_REFERENCE = json.loads(
    (Path(__file__).parent / "data" / "f34_recursion.json").read_text()
)
"""F34 at 224x224 by an independent implementation; the file says which."""
