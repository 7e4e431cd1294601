"""How many blocks a network of a published depth has."""

from layerwise.errors import InvalidArgumentError, message


def blocks_per_stage(
    depth: int, *, extra: int, per_block: int, num_stages: int = 3
) -> int:
    """Returns n where `depth = num_stages * per_block * n + extra`.

    Args:
        depth: Weight layers on the longest path, as in the architecture's name.
        extra: Weight layers outside of the blocks.
        per_block: Weight layers of one block.
        num_stages: Stages with n blocks each.

    Raises:
        InvalidArgumentError: No n >= 1 gives this depth.
    """
    step = num_stages * per_block
    count, rest = divmod(depth - extra, step)
    if rest or count < 1:
        below = max(step * count, step) + extra
        raise InvalidArgumentError(
            message(
                f"No network of this family has depth {depth}.",
                f"Its depths are {step} n + {extra}, with n blocks in each of "
                f"{num_stages} stages.",
                f"Pass a depth of that form, for example {below}.",
            )
        )
    return count
