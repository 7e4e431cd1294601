"""Initializers: the classics, the paper's, and one call for a whole model."""

from layerwise.initializers.initialize import initialize, scheme_law, scheme_names


__all__ = ["initialize", "scheme_law", "scheme_names"]
