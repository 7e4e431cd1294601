"""What a person sees: a model described, its curves beside theory, the verdict."""

from layerwise.report.describe import Description, describe
from layerwise.report.diagnosis import assert_healthy, diagnose
from layerwise.report.finding import Diagnosis, Finding
from layerwise.report.monitor import Monitor, Snapshot, monitor
from layerwise.report.propagate import propagate_variance
from layerwise.report.report import VarianceReport, plot_comparison


__all__ = [
    "Description",
    "Diagnosis",
    "Finding",
    "Monitor",
    "Snapshot",
    "VarianceReport",
    "assert_healthy",
    "describe",
    "diagnose",
    "monitor",
    "plot_comparison",
    "propagate_variance",
]
