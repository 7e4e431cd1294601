"""Predicts, measures and fixes the per-layer variance of networks at initialization."""

from layerwise import errors, zoo
from layerwise.initializers import Law, initialize, scheme_law, scheme_names
from layerwise.measurement import Measurement, measure
from layerwise.report import VarianceReport, plot_comparison, propagate_variance


__version__ = "0.1.0"
__all__ = [
    "Law",
    "Measurement",
    "VarianceReport",
    "errors",
    "initialize",
    "measure",
    "plot_comparison",
    "propagate_variance",
    "scheme_law",
    "scheme_names",
    "zoo",
]
