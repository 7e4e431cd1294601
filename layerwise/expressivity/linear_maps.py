"""Linear maps between arrays, with two faces: a float64 matrix, and a JAX function.

The theorems and the region counters want the matrix (exact, NumPy, float64). A
rewritten ResNet wants the convolution that the matrix stands for. A `LinearMap` is
both.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from layerwise.errors import UnsupportedModelError, message


Matrix = np.ndarray | scipy.sparse.csr_array
"""A float64 matrix (out, in); sparse where most of it is zero."""

_MAX_ENTRIES = 60_000_000
"""Nonzeros of the largest matrix that is ever written out (about 1 GB)."""


@dataclasses.dataclass(frozen=True, eq=False)
class LinearMap:
    """A linear map from arrays of `in_shape` to arrays of `out_shape`.

    Attributes:
        in_shape: Shape of the argument.
        out_shape: Shape of the value.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    def apply(self, x: Any) -> jax.Array:
        """Returns the map's value at one array, traceable by JAX."""
        raise NotImplementedError

    def matrix(self) -> Matrix:
        """Returns the float64 matrix (prod(out_shape), prod(in_shape))."""
        raise NotImplementedError

    @property
    def in_size(self) -> int:
        """Number of entries of the argument."""
        return math.prod(self.in_shape)

    @property
    def out_size(self) -> int:
        """Number of entries of the value."""
        return math.prod(self.out_shape)


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixMap(LinearMap):
    """The map of an explicit matrix, dense or sparse, on flattened arrays."""

    weight: Matrix

    def apply(self, x: Any) -> jax.Array:
        """Multiplies; a sparse matrix by gather and scatter-add."""
        flat = jnp.reshape(x, (-1,))
        if not isinstance(self.weight, np.ndarray):
            coo = self.weight.tocoo()
            terms = jnp.asarray(coo.data, flat.dtype) * flat[coo.col]
            out = jnp.zeros(self.out_size, flat.dtype).at[coo.row].add(terms)
        else:
            out = jnp.asarray(self.weight, flat.dtype) @ flat
        return out.reshape(self.out_shape)

    def matrix(self) -> Matrix:
        """Returns the matrix itself."""
        return self.weight


@dataclasses.dataclass(frozen=True, eq=False)
class ScaleMap(LinearMap):
    """A multiple of the identity."""

    factor: float

    def apply(self, x: Any) -> jax.Array:
        """Multiplies by the factor."""
        return jnp.reshape(x if self.factor == 1.0 else self.factor * x, self.out_shape)

    def matrix(self) -> Matrix:
        """Returns a sparse diagonal."""
        return scipy.sparse.csr_array(
            scipy.sparse.identity(self.in_size, format="csr") * self.factor
        )


@dataclasses.dataclass(frozen=True, eq=False)
class ProgramMap(LinearMap):
    """The linear part of a JAX program that is affine in its argument.

    The matrix is read off by applying the program to the unit vectors. A unit vector
    picks single products, so that a float32 convolution yields its float32 weights
    exactly, whatever its order of summation.
    """

    program: Callable[[Any], jax.Array]
    dtype: Any = np.float32

    def apply(self, x: Any) -> jax.Array:
        """Runs the program."""
        return self.program(x)

    def matrix(self) -> Matrix:
        """Runs the program on blocks of unit vectors."""
        return self._matrix

    @functools.cached_property
    def _matrix(self) -> Matrix:
        n, block = self.in_size, max(1, min(self.in_size, 2_000_000 // self.out_size))
        run = jax.jit(jax.vmap(lambda e: self.program(e).reshape(-1)))
        parts, stored = [], 0
        for start in range(0, n, block):
            rows = np.arange(start, start + block)
            units = (rows[:, None] == np.arange(n)[None, :]).astype(self.dtype)
            columns = np.asarray(run(units.reshape(block, *self.in_shape)), np.float64)
            parts.append(scipy.sparse.csc_array(columns[: n - start].T))
            stored += parts[-1].nnz
            if stored > _MAX_ENTRIES:
                raise UnsupportedModelError(
                    message(
                        f"A linear map {self.in_shape} -> {self.out_shape} has more "
                        f"than {_MAX_ENTRIES} nonzero weights.",
                        "Exact decompositions write every layer out as a matrix.",
                        "Use a smaller input or a narrower model.",
                    )
                )
        sparse = scipy.sparse.csr_array(scipy.sparse.hstack(parts))
        dense = sparse.nnz > 0.2 * n * self.out_size
        return sparse.toarray() if dense else sparse


@dataclasses.dataclass(frozen=True, eq=False)
class ComposedMap(LinearMap):
    """One map after another."""

    outer: LinearMap
    inner: LinearMap

    def apply(self, x: Any) -> jax.Array:
        """Applies the inner map, then the outer one."""
        return self.outer.apply(self.inner.apply(x))

    def matrix(self) -> Matrix:
        """Returns the product, in float64."""
        return self._matrix

    @functools.cached_property
    def _matrix(self) -> Matrix:
        return self.outer.matrix() @ self.inner.matrix()


def identity(shape: tuple[int, ...]) -> ScaleMap:
    """Returns the identity on arrays of `shape`."""
    return ScaleMap(shape, shape, 1.0)


def compose(outer: LinearMap, inner: LinearMap) -> LinearMap:
    """Returns ``outer after inner``, multiplied out where that costs nothing."""
    if isinstance(inner, ScaleMap) and isinstance(outer, ScaleMap):
        return ScaleMap(inner.in_shape, outer.out_shape, inner.factor * outer.factor)
    if isinstance(inner, ScaleMap) and inner.factor == 1.0:
        if inner.in_shape == inner.out_shape:
            return outer
    elif isinstance(outer, ScaleMap) and outer.factor == 1.0:
        if outer.in_shape == outer.out_shape:
            return inner
    elif isinstance(inner, MatrixMap) and isinstance(outer, MatrixMap):
        return MatrixMap(
            inner.in_shape, outer.out_shape, _as_matrix(outer.weight @ inner.weight)
        )
    return ComposedMap(inner.in_shape, outer.out_shape, outer, inner)


def _as_matrix(weight: Any) -> Matrix:
    if scipy.sparse.issparse(weight):
        return scipy.sparse.csr_array(weight)
    return np.asarray(weight, np.float64)


def from_matrix(
    weight: Any,
    in_shape: tuple[int, ...] | None = None,
    out_shape: tuple[int, ...] | None = None,
) -> MatrixMap:
    """Returns the map of a matrix (out, in), dense or scipy sparse."""
    matrix = _as_matrix(weight)
    shape: Any = matrix.shape
    return MatrixMap(in_shape or shape[1:], out_shape or shape[:1], matrix)
