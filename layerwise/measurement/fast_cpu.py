"""Faster equivalents, on CPU, of equations that XLA's CPU backend is slow at."""

from layerwise.tracing import TracedModel
from layerwise.tracing.graph import Evaluator


def override_for(traced: TracedModel, rewrite: bool) -> Evaluator | None:
    """Returns the evaluator of replaced equations, or None where none is replaced."""
    return None
