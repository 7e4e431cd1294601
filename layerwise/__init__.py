"""Predicts, measures and fixes the per-layer variance of networks at initialization."""

__version__ = "0.1.0"
