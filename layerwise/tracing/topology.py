"""Residual, skip, or neither: what kind of connections a network is made of.

The distinction is one of the program, not of names. Only outermost blocks are looked
at, those that no other block's branches hold: an hourglass inside a residual block is
the block's own business.

* *skip*: a block that concatenates its entry to what it computed (a dense block, a
  U-Net), or gates it (a highway), or adds its fine map to one that went through a
  coarser one (a feature pyramid).
* *residual*: sums of what layers computed with their entry, handed on as it is, cut or
  padded, or projected by one matrix at every place.

A network with both, outermost, is of the skip kind. Parallel branches that all hold
layers and are concatenated (Inception) or averaged (FractalNet) are neither.
"""

import math
from collections.abc import Sequence

from layerwise.tracing.blocks import Block
from layerwise.tracing.graph import Equation
from layerwise.tracing.layers import TracedModel


KINDS = ("residual", "skip", "neither")


def classify(traced: TracedModel, found: Sequence[Block]) -> str:
    """Returns "residual", "skip" or "neither".

    Args:
        traced: The model.
        found: Its blocks, see `layerwise.tracing.blocks.blocks`.
    """
    producers = {
        v: e
        for graph in (traced.graph, *(g for y in traced.loops for g in y.graphs()))
        for v, e in graph.producers().items()
    }
    outer = outermost(found)
    around = [b for b in outer if _is_encoder_decoder(traced, b, found)]
    for block in outer:
        if _is_skip(block, producers) or (block in around and not _copied(block)):
            return "skip"
    if (
        len(around) == 1
        and len(outer) == 1
        and any(b.kind == "add" and b is not outer[0] for b in found)
    ):
        return "skip"
    sums = [b for b in found if b.kind == "add" and b.residuals]
    return "residual" if any(_copied(b) or _projected(b) for b in sums) else "neither"


def outermost(found: Sequence[Block]) -> list[Block]:
    """Returns the blocks that are not within another, in program order."""
    return [
        b
        for b in found
        if not any(a is not b and a.entry <= b.entry and b.exit < a.exit for a in found)
    ]


def _copied(block: Block) -> bool:
    """Whether a branch without layers hands on entries as they are."""
    return any(b.copies and not b.layers for b in block.branches)


def _projected(block: Block) -> bool:
    """Whether the shortcut is one matrix applied at every place."""
    shortcut = block.shortcut
    if shortcut is None or len(shortcut.layers) != 1:
        return False
    return all(axis.taps == 1 for axis in shortcut.layers[0].connections.axes)


def _is_skip(block: Block, producers: dict[int, Equation]) -> bool:
    if block.kind == "concat":
        return _copied(block) and bool(block.residuals)
    is_sum = producers[block.exit].name != "mul"  # else a factor: squeeze, excitation
    return block.kind == "gate" and is_sum


def _is_encoder_decoder(
    traced: TracedModel, block: Block, found: Sequence[Block]
) -> bool:
    """Whether a sum's branch goes through a coarser map than the one it adds to."""
    here = traced.graph.avals.get(block.exit)
    if block.kind != "add" or here is None or len(here.shape) < 3:
        return False
    gated = {
        y.root
        for b in found
        if b.kind == "gate" and block.entry <= b.entry and b.exit < block.exit
        for branch in b.branches
        for y in branch.layers
    }
    sizes = [
        math.prod(y.shape[1:-1])
        for branch in block.branches
        for y in branch.layers
        if y.root not in gated and len(y.shape) == len(here.shape)
    ]
    return min(sizes, default=math.inf) < math.prod(here.shape[1:-1])
