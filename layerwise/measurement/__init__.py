"""Measurement: the moments of real networks, over many random initializations.

Imports neither `theory` nor `initializers`: otherwise agreement with them would prove
nothing. The files: `taps` (the identity that reports moments), `statistics` (what else
it can report), `walk` (a program run with taps in it, loops included), `tapped_model`
(a model run forward and backward once), `coverage` (what is measured, what cannot be),
`redraw` (how the networks of an ensemble are drawn), `compiling` (programs that are run
a few times), `ensemble` (many draws in bounded memory), `result` (what was measured,
and its statistics over draws), `measure` (the public call).
"""

from layerwise.measurement.measure import measure
from layerwise.measurement.result import Measurement


__all__ = ["Measurement", "measure"]
