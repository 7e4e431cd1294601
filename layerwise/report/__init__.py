"""Measurement beside theory: the report of one call, its table and its curves."""

from layerwise.report.propagate import propagate_variance
from layerwise.report.report import VarianceReport


__all__ = ["VarianceReport", "propagate_variance"]
