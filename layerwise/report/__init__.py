"""Measurement beside theory: the report of one call, its table and its curves."""

from layerwise.report.propagate import propagate_variance
from layerwise.report.report import VarianceReport, plot_comparison


__all__ = ["VarianceReport", "plot_comparison", "propagate_variance"]
