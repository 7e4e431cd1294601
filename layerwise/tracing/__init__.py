"""Any model -> its equations, its weight operations by name, and what follows each.

`trace` is the entry point. The files: `model` (Linen, NNX or a function as one pure
function), `prepare` (what a user passes, checked), `graph` (a jaxpr with calls inlined
and values numbered), `dataflow` (what is signal, what is parameter, what merges),
`connections` (how many inputs an output sees), `pointwise` (a run of elementwise
equations as one scalar function), `layers` and `finder` (all of it put together: the
layers of the network), `sites` (the values that moments are stated of), `chain` (layers
in a row, as the literature's formulas know them).
"""

from layerwise.tracing.chain import ChainLayer, chain
from layerwise.tracing.finder import trace
from layerwise.tracing.layers import Layer, Loop, Step, TracedModel
from layerwise.tracing.model import ModelFunction, as_function


__all__ = [
    "ChainLayer",
    "Layer",
    "Loop",
    "ModelFunction",
    "Step",
    "TracedModel",
    "as_function",
    "chain",
    "trace",
]
