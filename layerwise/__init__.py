"""Predicts, measures and fixes the per-layer variance of networks at initialization."""

from layerwise import zoo
from layerwise.initializers import initialize
from layerwise.measurement import measure
from layerwise.report import propagate_variance


__version__ = "0.1.0"
__all__ = ["initialize", "measure", "propagate_variance", "zoo"]
