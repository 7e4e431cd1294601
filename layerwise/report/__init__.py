"""What a person sees: a model described, its curves measured beside theory."""

from layerwise.report.describe import Description, describe
from layerwise.report.propagate import propagate_variance
from layerwise.report.report import VarianceReport, plot_comparison


__all__ = [
    "Description",
    "VarianceReport",
    "describe",
    "plot_comparison",
    "propagate_variance",
]
