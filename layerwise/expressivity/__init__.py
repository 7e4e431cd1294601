"""What networks can express: theorems that compile, counts that are exact.

* `constructions` and `compile`: [Nagase2019] as programs; `express` for real models;
* `regions`, `folding`: linear and activation regions, exactly, and their bounds;
* `memorization`: networks that fit any labels;
* `paths`: the 2^n paths of a residual network.
"""

from layerwise.expressivity.compile import compile_net
from layerwise.expressivity.express import Expressed, express
from layerwise.expressivity.graph import Net
from layerwise.expressivity.memorization import Memorizer, memorize, memorize_deep
from layerwise.expressivity.paths import (
    Block,
    gradient_by_length,
    sampled_gradient_by_length,
    share_of_paths,
)
from layerwise.expressivity.regions import (
    Decomposition,
    Slice,
    decompose_line,
    decompose_plane,
    decompose_space,
)
from layerwise.expressivity.translate import net_of


__all__ = [
    "Block",
    "Decomposition",
    "Expressed",
    "Memorizer",
    "Net",
    "Slice",
    "compile_net",
    "decompose_line",
    "decompose_plane",
    "decompose_space",
    "express",
    "gradient_by_length",
    "memorize",
    "memorize_deep",
    "net_of",
    "sampled_gradient_by_length",
    "share_of_paths",
]
