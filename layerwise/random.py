"""Normal draws for many arrays at once.

One generator call for all of them compiles ten times faster than one call each, and a
compiler is where most of a first measurement's time goes.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


_LARGEST = 2**28  # entries per generator call: 1 GiB of float32


def normal_leaves(
    key: jax.Array, likes: Mapping[str, Any], stddev: Mapping[str, float]
) -> dict[str, jax.Array]:
    """Draws named arrays of independent zero-mean normals.

    Determined by the key and by the names, shapes and order of what is drawn; the same
    on any number of devices.

    Args:
        key: PRNG key.
        likes: Name -> anything with the shape and dtype wanted.
        stddev: Name -> standard deviation.

    Returns:
        Name -> array.
    """
    out: dict[str, jax.Array] = {}
    names = list(stddev)
    call = 0
    while names:
        group, total = [], 0
        while names and (not group or total + likes[names[0]].size <= _LARGEST):
            group.append(names.pop(0))
            total += likes[group[-1]].size
        unit = jax.random.normal(jax.random.fold_in(key, call), (total,), jnp.float32)
        ends = np.cumsum([likes[n].size for n in group])
        for name, end in zip(group, ends, strict=True):
            like = likes[name]
            part = unit[end - like.size : end].reshape(like.shape)
            out[name] = (part * stddev[name]).astype(like.dtype)
        call += 1
    return out
