r"""The :math:`2^n` paths of a residual network, and what each length contributes.

A residual block adds a branch to a shortcut. Multiplied out, n blocks are a sum over
the subsets of branches that a signal takes [Veit2016]: :math:`2^n` paths, of length
Bin(n, 1/2) when a path is drawn at random. Three things can be computed:

* all paths one by one (`path_outputs`, `path_gradients`), for small n;
* the gradient of each length exactly, at the activations of the full network
  (`gradient_by_length`): a polynomial whose variable counts branches is carried
  backwards, n^2 / 2 products instead of 2^n;
* the protocol of [Veit2016] (`sampled_gradient_by_length`): draw a path, run backward
  through it alone (and forward, if asked), and record the gradient's norm.

`lesion`, `swap` and `random_swaps` delete and exchange blocks of a trained network.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.errors import InputError, InvalidArgumentError, message
from layerwise.types import PyTree


def _same(x: jax.Array) -> jax.Array:
    return x


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """``after(shortcut(x) + branch(params, x))``.

    Blocks that share `branch`, `shortcut` and `after` are compiled once, so give the
    functions by name and the weights in `params`.

    Attributes:
        branch: The residual function; None for a block whose branch was deleted.
        params: Its weights.
        shortcut: Linear; the identity, or a projection where the shape changes.
        after: What follows the sum (ReLU in the first kind of ResNet).
    """

    branch: Callable[[PyTree, jax.Array], jax.Array] | None
    params: PyTree = None
    shortcut: Callable[[jax.Array], jax.Array] = _same
    after: Callable[[jax.Array], jax.Array] = _same

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the block's output."""
        return self.without_branch(x) if self.branch is None else self._full(x)

    def without_branch(self, x: jax.Array) -> jax.Array:
        """Returns the output with the branch left out."""
        return _run_short(self.shortcut, self.after)(x)

    def _full(self, x: jax.Array) -> jax.Array:
        assert self.branch is not None
        return _run_full(self.branch, self.shortcut, self.after)(self.params, x)


@functools.lru_cache(maxsize=64)
def _run_short(shortcut: Any, after: Any) -> Any:
    return jax.jit(lambda x: after(shortcut(x)))


@functools.lru_cache(maxsize=64)
def _run_full(branch: Any, shortcut: Any, after: Any) -> Any:
    return jax.jit(lambda params, x: after(shortcut(x) + branch(params, x)))


@functools.lru_cache(maxsize=64)
def _pull_full(branch: Any, shortcut: Any, after: Any) -> Any:
    """Cotangents (P, *out) at the block's output -> by the shortcut, by the branch."""

    def pull(params: PyTree, x: jax.Array, cotangents: jax.Array) -> Any:
        short, pull_short = jax.vjp(shortcut, x)
        long, pull_long = jax.vjp(lambda v: branch(params, v), x)
        _, pull_after = jax.vjp(after, short + long)

        def one(g: jax.Array) -> tuple[jax.Array, jax.Array]:
            (inner,) = pull_after(g)
            return pull_short(inner)[0], pull_long(inner)[0]

        return jax.vmap(one)(cotangents)

    return jax.jit(pull)


@functools.lru_cache(maxsize=64)
def _pull_short(shortcut: Any, after: Any) -> Any:
    def pull(x: jax.Array, cotangents: jax.Array) -> jax.Array:
        _, back = jax.vjp(lambda v: after(shortcut(v)), x)
        return jax.vmap(lambda g: back(g)[0])(cotangents)

    return jax.jit(pull)


def run_blocks(blocks: Sequence[Block], x: jax.Array) -> list[jax.Array]:
    """Returns the input of every block, and the output of the last."""
    states = [jnp.asarray(x)]
    for block in blocks:
        states.append(block(states[-1]))
    return states


# How many paths -----------------------------------------------------------------------


def path_length_law(n_blocks: int) -> np.ndarray:
    """Returns the share of paths of each length 0..n, Bin(n, 1/2), exact to rounding.

    Raises:
        InvalidArgumentError: If there is no block.
    """
    if n_blocks < 1:
        raise InvalidArgumentError(
            message(
                f"n_blocks={n_blocks}.",
                "Paths are through one block or more.",
                "Use the number of residual blocks, 54 for ResNet-110.",
            )
        )
    total = 2**n_blocks
    return np.array([math.comb(n_blocks, k) / total for k in range(n_blocks + 1)])


def share_of_paths(n_blocks: int, low: int, high: int) -> float:
    """Returns the share of paths with ``low <= length <= high``.

    >>> f"{share_of_paths(54, 5, 17):.6f} {share_of_paths(54, 19, 35):.4f}"
    '0.004537 0.9802'
    """
    return float(path_length_law(n_blocks)[max(low, 0) : high + 1].sum())


# All paths ----------------------------------------------------------------------------

_MAX_BLOCKS = 16


def path_outputs(blocks: Sequence[Block], x: jax.Array) -> tuple[jax.Array, np.ndarray]:
    """Returns what every path makes of `x`, and how many branches each path takes.

    The sum over the paths is the network's output if all branches are linear.

    Args:
        blocks: At most 16, with `after` the identity.
        x: The input.

    Returns:
        Outputs (2^n, *shape) and lengths (2^n,).
    """
    _check_enumerable(blocks)
    values, lengths = jnp.asarray(x)[None], np.zeros(1, np.int64)
    for block in blocks:
        short = jax.vmap(block.shortcut)(values)
        if block.branch is None:
            values = short
            continue
        long = jax.vmap(functools.partial(block.branch, block.params))(values)
        values = jnp.concatenate([short, long])
        lengths = np.concatenate([lengths, lengths + 1])
    return values, lengths


def path_gradients(
    blocks: Sequence[Block], x: jax.Array, cotangent: jax.Array
) -> tuple[jax.Array, np.ndarray]:
    """Returns every path's part of the gradient at `x`, and the paths' lengths.

    Every block is linearized at the input it has in the full network (for ReLU: the
    masks are fixed), where the sum over the paths is the gradient, exactly.

    Args:
        blocks: At most 16.
        x: The input.
        cotangent: The loss's gradient at the output.

    Returns:
        Parts (2^n, *x.shape) and lengths (2^n,).
    """
    _check_enumerable(blocks)
    states = run_blocks(blocks, x)
    parts, lengths = jnp.asarray(cotangent)[None], np.zeros(1, np.int64)
    for block, state in zip(reversed(blocks), reversed(states[:-1])):
        short, long = _pulled(block, state, parts)
        if long is None:
            parts = short
            continue
        parts = jnp.concatenate([short, long])
        lengths = np.concatenate([lengths, lengths + 1])
    return parts, lengths


def _check_enumerable(blocks: Sequence[Block]) -> None:
    if not 1 <= len(blocks) <= _MAX_BLOCKS:
        raise InvalidArgumentError(
            message(
                f"{len(blocks)} blocks have 2^{len(blocks)} paths.",
                f"They are listed one by one up to {_MAX_BLOCKS} blocks.",
                "Use gradient_by_length(...), which sums paths of one length.",
            )
        )


def _pulled(
    block: Block, state: jax.Array, cotangents: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    if block.branch is None:
        pull = _pull_short(block.shortcut, block.after)
        return pull(state, cotangents), None
    pull = _pull_full(block.branch, block.shortcut, block.after)
    return pull(block.params, state, cotangents)


# The gradient by length ---------------------------------------------------------------


def gradient_by_length(
    blocks: Sequence[Block], x: jax.Array, cotangent: jax.Array
) -> jax.Array:
    """Returns the gradient at `x` summed over all paths of each length.

    Exact, at the activations of the full network: entry k is the coefficient of t^k in
    ``prod_i (S_i + t F_i')^T`` applied to the cotangent; their sum is the gradient.
    One backward pass with n + 1 cotangents.

    Args:
        blocks: Any number n of them.
        x: The input.
        cotangent: The loss's gradient at the output.

    Returns:
        (n + 1, *x.shape).
    """
    states = run_blocks(blocks, x)
    zero = jnp.zeros_like(cotangent)
    parts = jnp.stack([cotangent, *[zero] * len(blocks)])
    for block, state in zip(reversed(blocks), reversed(states[:-1])):
        short, long = _pulled(block, state, parts)
        if long is not None:
            short = short.at[1:].add(long[:-1])
        parts = short
    return parts


Forward = Literal["full", "path"]
"""What the signal goes through when the gradient of one path is measured."""


@dataclasses.dataclass(frozen=True, eq=False)
class SampledGradients:
    """Gradient norms along sampled paths. [Veit2016] section 4.3.

    Attributes:
        n_blocks: n.
        lengths: The path lengths k that were sampled.
        norms: (lengths, samples), the norm of the gradient at the input, one per path.
    """

    n_blocks: int
    lengths: np.ndarray
    norms: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Mean norm of one path, by length."""
        return self.norms.mean(axis=1)

    @property
    def sem(self) -> np.ndarray:
        """Standard error of the mean norm over sampled paths."""
        return self.norms.std(axis=1, ddof=1) / math.sqrt(self.norms.shape[1])

    @property
    def share(self) -> np.ndarray:
        """Number of paths times mean norm, over the sum of that: shares by length."""
        count = [float(math.comb(self.n_blocks, int(k))) for k in self.lengths]
        total = np.asarray(count) * self.mean
        return total / total.sum()


def sampled_gradient_by_length(
    blocks: Sequence[Block],
    x: jax.Array,
    loss: Callable[[jax.Array], jax.Array],
    key: jax.Array,
    *,
    lengths: Iterable[int] | None = None,
    samples: int = 16,
    forward: Forward = "full",
) -> SampledGradients:
    """Samples paths of each length and measures the gradient through each alone.

    For length k, k blocks are drawn; backwards the gradient goes through the branch
    only in these, and through the shortcut only in the others. Standard errors are over
    paths of this one network.

    Args:
        blocks: The network.
        x: The input.
        loss: Of the last block's output, a scalar.
        key: Draws the paths.
        lengths: Which; all of 0..n if None.
        samples: Paths per length, at least two.
        forward: What the signal goes through. "full": the whole network, so that the
            paths are those whose sum is the gradient. "path": the drawn path alone,
            whose activations, masks and normalization are then its own.

    Raises:
        InvalidArgumentError: If a length is not in 0..n or there is one sample.
    """
    n = len(blocks)
    wanted = np.arange(n + 1) if lengths is None else np.asarray(list(lengths))
    if samples < 2 or not len(wanted) or wanted.min() < 0 or wanted.max() > n:
        raise InvalidArgumentError(
            message(
                f"lengths={wanted.tolist()}, samples={samples} for {n} blocks.",
                "Paths have 0 to n branches; a spread needs two samples.",
                f"Use lengths from 0 to {n} and samples of at least 2.",
            )
        )
    slope = jax.jit(jax.grad(loss))
    states = run_blocks(blocks, x)
    rows: list[Any] = []
    for k in wanted.tolist():
        taken = np.zeros((samples, n), bool)
        for draw in range(samples):
            choice = jax.random.fold_in(jax.random.fold_in(key, k), draw)
            taken[draw, np.asarray(jax.random.permutation(choice, n))[:k]] = True
        if forward == "full":
            rows.append(_norms_in_full(blocks, states, slope(states[-1]), taken))
        else:
            rows.append([_norm_alone(blocks, x, slope, row) for row in taken])
    return SampledGradients(n, wanted, np.asarray(rows))


def _norms_in_full(
    blocks: Sequence[Block],
    states: Sequence[jax.Array],
    cotangent: jax.Array,
    taken: np.ndarray,
) -> np.ndarray:
    """Norms of the gradients through each path, all at the full network's states."""
    parts = jnp.broadcast_to(cotangent, (len(taken), *cotangent.shape))
    for i, block in reversed(list(enumerate(blocks))):
        short, long = _pulled(block, states[i], parts)
        if long is None:
            long = jnp.zeros_like(short)  # a deleted branch carries nothing
        mask = taken[:, i].reshape(-1, *[1] * (short.ndim - 1))
        parts = jnp.where(mask, long, short)
    return np.linalg.norm(np.asarray(parts, np.float64).reshape(len(taken), -1), axis=1)


def _norm_alone(
    blocks: Sequence[Block], x: jax.Array, slope: Any, taken: np.ndarray
) -> float:
    """The norm of the gradient of the network that is one path alone."""
    path = [
        dataclasses.replace(b, shortcut=_nothing(b.shortcut))
        if use
        else dataclasses.replace(b, branch=None)
        for b, use in zip(blocks, taken, strict=True)
    ]
    states = run_blocks(path, x)
    parts = slope(states[-1])[None]
    for block, state in zip(reversed(path), reversed(states[:-1])):
        short, long = _pulled(block, state, parts)
        parts = short if long is None else long
    return float(jnp.linalg.norm(parts))


@functools.lru_cache(maxsize=64)
def _nothing(shortcut: Any) -> Any:
    return lambda x: jnp.zeros_like(shortcut(x))


# Lesions and shuffles -----------------------------------------------------------------


def lesion(blocks: Sequence[Block], deleted: Iterable[int]) -> list[Block]:
    """Returns the blocks with the branches of some deleted; the shortcuts stay.

    Half of the paths go through any one branch: 2^(n-1) paths remain.

    Raises:
        InvalidArgumentError: If an index is not a block's.
    """
    gone = _checked(blocks, deleted)
    return [
        dataclasses.replace(b, branch=None, params=None) if i in gone else b
        for i, b in enumerate(blocks)
    ]


def swap(
    blocks: Sequence[Block], pairs: Iterable[tuple[int, int]], x: jax.Array
) -> list[Block]:
    """Returns the blocks with pairs of them exchanged.

    Args:
        blocks: The network.
        pairs: Exchanges, made one after another.
        x: An input, from which the shapes between blocks follow.

    Raises:
        InvalidArgumentError: If an index is not a block's.
        InputError: If two blocks of different shapes would be exchanged.
    """
    shapes = _block_shapes(blocks, x)
    order = list(range(len(blocks)))
    for i, j in pairs:
        _checked(blocks, (i, j))
        if shapes[i] != shapes[j]:
            raise InputError(
                message(
                    f"Block {i} maps {shapes[i][0]} to {shapes[i][1]}, block {j} "
                    f"{shapes[j][0]} to {shapes[j][1]}.",
                    "Only blocks of equal shapes can change places.",
                    "Exchange blocks within one stage.",
                )
            )
        order[i], order[j] = order[j], order[i]
    return [blocks[i] for i in order]


def random_swaps(
    blocks: Sequence[Block], x: jax.Array, key: jax.Array, *, count: int
) -> list[tuple[int, int]]:
    """Draws pairs of different blocks of equal shapes, for `swap`.

    Raises:
        InputError: If no two blocks have equal shapes.
    """
    shapes = _block_shapes(blocks, x)
    n = len(blocks)
    pairs = [(i, j) for i in range(n) for j in range(i) if shapes[i] == shapes[j]]
    if not pairs:
        raise InputError(
            message(
                f"No two of {n} blocks have equal shapes.",
                "Only blocks of equal shapes can change places.",
                "Use a network with stages of two blocks or more.",
            )
        )
    drawn = jax.random.randint(key, (count,), 0, len(pairs))
    return [pairs[int(i)] for i in drawn]


def _block_shapes(
    blocks: Sequence[Block], x: jax.Array
) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    shapes = [tuple(jnp.shape(x))]
    state: Any = jax.ShapeDtypeStruct(shapes[0], jnp.asarray(x).dtype)
    for block in blocks:
        state = jax.eval_shape(block, state)
        shapes.append(tuple(state.shape))
    return list(itertools.pairwise(shapes))


def _checked(blocks: Sequence[Block], indices: Iterable[int]) -> set[int]:
    chosen = set(indices)
    outside = sorted(i for i in chosen if not 0 <= i < len(blocks))
    if outside:
        raise InvalidArgumentError(
            message(
                f"Blocks {outside} of {len(blocks)}.",
                "Blocks are numbered from zero.",
                f"Use indices from 0 to {len(blocks) - 1}.",
            )
        )
    return chosen
