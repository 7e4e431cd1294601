"""Initializers: the classics, the paper's, and one call for a whole model."""

from layerwise.initializers.initialize import (
    Law,
    initialize,
    scheme_law,
    scheme_names,
)


__all__ = ["Law", "initialize", "scheme_law", "scheme_names"]
