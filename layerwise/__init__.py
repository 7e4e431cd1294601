"""Predicts, measures and fixes the per-layer variance of networks at initialization."""

import importlib
from typing import TYPE_CHECKING, Any

from layerwise import errors, initializers, zoo
from layerwise.initializers import Law, initialize, scheme_law, scheme_names
from layerwise.measurement import Measurement, measure
from layerwise.moments.gain import gain
from layerwise.report import (
    Description,
    Diagnosis,
    Finding,
    Monitor,
    Snapshot,
    VarianceReport,
    assert_healthy,
    describe,
    diagnose,
    monitor,
    plot_comparison,
    propagate_variance,
)


if TYPE_CHECKING:
    from layerwise import expressivity
    from layerwise.expressivity import express
    from layerwise.report.predict import predict
    from layerwise.theory.prediction import Prediction
    from layerwise.theory.rules import rule

__version__ = "0.1.0"
__all__ = [
    "Description",
    "Diagnosis",
    "Finding",
    "Law",
    "Measurement",
    "Monitor",
    "Prediction",
    "Snapshot",
    "VarianceReport",
    "assert_healthy",
    "describe",
    "diagnose",
    "errors",
    "express",
    "expressivity",
    "gain",
    "initialize",
    "initializers",
    "measure",
    "monitor",
    "plot_comparison",
    "predict",
    "propagate_variance",
    "rule",
    "scheme_law",
    "scheme_names",
    "zoo",
]

# What needs more of SciPy than a first measurement does is imported when it is used.
_LAZY = {
    "expressivity": ("layerwise.expressivity", None),
    "express": ("layerwise.expressivity", "express"),
    "predict": ("layerwise.report.predict", "predict"),
    "Prediction": ("layerwise.theory.prediction", "Prediction"),
    "rule": ("layerwise.theory.rules", "rule"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'layerwise' has no attribute {name!r}")
    module, attribute = _LAZY[name]
    loaded = importlib.import_module(module)
    return loaded if attribute is None else getattr(loaded, attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
