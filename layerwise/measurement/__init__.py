"""Measurement: the moments of real networks, over many random initializations.

Imports neither `theory` nor `initializers`: otherwise agreement with them would prove
nothing. The files: `taps` (a program that reports its own moments), `redraw` (how the
networks of an ensemble are drawn), `ensemble` (many draws in bounded memory), `result`
(what was measured, and its statistics over draws), `measure` (the public call).
"""

from layerwise.measurement.measure import measure
from layerwise.measurement.result import Measurement


__all__ = ["Measurement", "measure"]
