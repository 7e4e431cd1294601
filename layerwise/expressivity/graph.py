"""Networks as graphs of affine maps, pointwise activations and joins, shapes checked.

A `Node` is a value computed from other values; a `Net` is a node seen as a function of
one input node. The algebra has four kinds of step:

* `Affine`: the sum of linear maps of its parents, plus a bias. With two parents it is
  an affine map of their concatenation (Theorem 3 of [Nagase2019] is this one line);
* `Pointwise`: one function of one variable, applied to every entry;
* `Concat`: parents side by side;
* `Join` and `MaxPool`: what compiles away (`layerwise.expressivity.compile`).

Constructions build graphs by hand, `translate` builds them from traced models, and the
compiler, the evaluator and the region counters read them without knowing which.

Example:
    >>> import numpy as np
    >>> x = Input((1,))
    >>> y = relu(affine(x, [[1.0], [1.0]], [0.0, -1.0]))
    >>> net = Net(x, affine(y, [[1.0, 1.0]]))
    >>> net(np.array([[-1.0], [0.5], [2.0]])).ravel()
    array([0. , 0.5, 3. ])
    >>> net.n_layers, net.n_units
    (1, 2)
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from layerwise.errors import InputError, InvalidArgumentError, message
from layerwise.expressivity import linear_maps, piecewise


@dataclasses.dataclass(frozen=True, eq=False)
class Activation:
    """A function of one variable.

    Attributes:
        name: What it is called.
        numpy: Its float64 form.
        jax: Its traceable form.
        pieces: Its table, if it is continuous and piecewise linear.
        positive_only: Whether it is undefined at zero and below (the logarithm).
    """

    name: str
    numpy: Callable[[np.ndarray], np.ndarray]
    jax: Callable[[jax.Array], jax.Array]
    pieces: piecewise.PiecewiseLinear | None = None
    positive_only: bool = False


RELU = Activation(
    "relu", lambda x: np.maximum(x, 0.0), lambda x: jnp.maximum(x, 0), piecewise.RELU
)
EXP = Activation("exp", np.exp, jnp.exp)
LOG = Activation("log", np.log, jnp.log, positive_only=True)
SQUARE = Activation("square", np.square, jnp.square)


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """A value in the graph.

    Attributes:
        parents: The values it is computed from.
        shape: Its shape. Hand-made networks use vectors, ``(d,)``.
    """

    parents: tuple["Node", ...]
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class Input(Node):
    """The argument of a network."""

    def __init__(self, shape: tuple[int, ...]):
        super().__init__((), tuple(shape))


@dataclasses.dataclass(frozen=True, eq=False)
class Affine(Node):
    """``bias + sum_i maps[i](parents[i])``: an affine map of the concatenated parents.

    Attributes:
        maps: One linear map per parent.
        bias: Of size `size`, flat, float64; zero if None.
    """

    maps: tuple[linear_maps.LinearMap, ...]
    bias: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class Pointwise(Node):
    """An activation of every entry of one parent."""

    activation: Activation


@dataclasses.dataclass(frozen=True, eq=False)
class Concat(Node):
    """Parents side by side along `axis`."""

    axis: int


@dataclasses.dataclass(frozen=True, eq=False)
class Join(Node):
    """An entrywise merge of parents of one shape.

    Attributes:
        kind: "add", "subtract", "mean", "max", "product" or "quotient".
    """

    kind: str
    KINDS: ClassVar = ("add", "subtract", "mean", "max", "product", "quotient")


@dataclasses.dataclass(frozen=True, eq=False)
class MaxPool(Node):
    """Maxima over windows of one parent.

    Attributes:
        windows: Per output entry, the flat indices of the entries it looks at.
    """

    windows: tuple[np.ndarray, ...]


def affine(parent: Node, weight: Any, bias: Any = None) -> Affine:
    """Returns ``weight @ parent + bias`` for a vector-valued parent."""
    return affine_of([parent], [weight], bias)


def affine_of(parents: Sequence[Node], weights: Sequence[Any], bias: Any) -> Affine:
    """Returns ``bias + sum_i weights[i] @ parents[i]``.

    Raises:
        InvalidArgumentError: If a weight does not fit its parent or the bias.
    """
    maps = []
    for parent, weight in zip(parents, weights, strict=True):
        matrix = weight if scipy.sparse.issparse(weight) else np.atleast_2d(weight)
        if matrix.shape[1] != parent.size:
            raise InvalidArgumentError(
                message(
                    f"A weight of shape {matrix.shape} was given a value of shape "
                    f"{parent.shape}.",
                    "An affine map's columns are the entries of its argument.",
                    f"Pass a weight with {parent.size} columns.",
                )
            )
        maps.append(linear_maps.from_matrix(matrix, parent.shape))
    rows = {m.out_size for m in maps}
    flat = None if bias is None else np.asarray(bias, np.float64).reshape(-1)
    if flat is not None:
        rows.add(flat.size)
    if len(rows) != 1:
        raise InvalidArgumentError(
            message(
                f"Weights and bias of one affine map have {sorted(rows)} rows.",
                "They are summed, so their values have one shape.",
                "Pass weights and bias with the same number of rows.",
            )
        )
    return Affine(tuple(parents), (rows.pop(),), tuple(maps), flat)


def pointwise(parent: Node, activation: Activation) -> Pointwise:
    """Returns `activation` of every entry."""
    return Pointwise((parent,), parent.shape, activation)


def relu(parent: Node) -> Pointwise:
    """Returns the positive part of every entry."""
    return pointwise(parent, RELU)


def concat(*parents: Node, axis: int = 0) -> Concat:
    """Returns the parents side by side.

    Raises:
        InvalidArgumentError: If their shapes differ off the axis.
    """
    off = {p.shape[:axis] + p.shape[axis + 1 :] for p in parents}
    if len(off) != 1:
        raise InvalidArgumentError(
            message(
                f"Values of shapes {[p.shape for p in parents]} along axis {axis}.",
                "Side by side they must agree on every other axis.",
                "Pass values that differ on the concatenation axis only.",
            )
        )
    shape = list(parents[0].shape)
    shape[axis] = sum(p.shape[axis] for p in parents)
    return Concat(tuple(parents), tuple(shape), axis)


def join(kind: str, *parents: Node) -> Join:
    """Returns the entrywise merge of parents of one shape.

    Args:
        kind: One of `Join.KINDS`.
        *parents: Two or more values; exactly two for "subtract" and "quotient".

    Raises:
        InvalidArgumentError: For an unknown kind, another number, or unequal shapes.
    """
    binary = kind in ("subtract", "quotient")
    if kind not in Join.KINDS or len(parents) < 2 or (binary and len(parents) != 2):
        raise InvalidArgumentError(
            message(
                f"join({kind!r}) of {len(parents)} values.",
                "A merge is of two or more values, a difference or quotient of two.",
                f"Use one of {', '.join(Join.KINDS)}.",
            )
        )
    if len({p.shape for p in parents}) != 1:
        raise InvalidArgumentError(
            message(
                f"join({kind!r}) of shapes {[p.shape for p in parents]}.",
                "A merge is entrywise.",
                "Bring the branches to one shape first, for example with affine().",
            )
        )
    return Join(tuple(parents), parents[0].shape, kind)


@dataclasses.dataclass(frozen=True, eq=False)
class Net:
    """A node as a function of an input node.

    Attributes:
        input: The argument.
        output: The value.
    """

    input: Input
    output: Node

    def nodes(self) -> list[Node]:
        """Returns every node that the output depends on, parents first."""
        return list(_topological(self.output))

    def __call__(self, x: Any) -> np.ndarray:
        """Evaluates in float64 NumPy.

        Args:
            x: One argument, or any stack of them: ``(*stack, *input.shape)``.

        Returns:
            ``(*stack, *output.shape)``.

        Raises:
            InputError: If `x` has another shape, or a value at or below zero reaches a
                logarithm.
        """
        x = np.asarray(x, np.float64)
        keep = x.ndim - len(self.input.shape)
        if keep < 0 or x.shape[keep:] != self.input.shape:
            raise InputError(
                message(
                    f"An argument of shape {x.shape} for a network of arguments of "
                    f"shape {self.input.shape}.",
                    "Leading axes may stack arguments; the last ones are the argument.",
                    f"Pass an array of shape (..., {self.input.shape}).",
                )
            )
        stack = x.shape[:keep]
        values: dict[Node, np.ndarray] = {}
        for node in self.nodes():
            if isinstance(node, Input):
                values[node] = x.reshape(-1, node.size)
            else:
                values[node] = _numpy_value(node, [values[p] for p in node.parents])
        return values[self.output].reshape(*stack, *self.output.shape)

    def apply(self, x: Any) -> jax.Array:
        """Evaluates at one argument in JAX, in the precision of `x`; traceable."""
        values: dict[Node, jax.Array] = {}
        for node in self.nodes():
            if isinstance(node, Input):
                values[node] = jnp.asarray(x)
            else:
                values[node] = _jax_value(node, [values[p] for p in node.parents])
        return values[self.output]

    @property
    def n_layers(self) -> int:
        """Activations on the longest path, which is L of [Nagase2019] Def. 1."""
        depth: dict[Node, int] = {}
        for node in self.nodes():
            before = max((depth[p] for p in node.parents), default=0)
            depth[node] = before + isinstance(node, Pointwise)
        return depth[self.output]

    @property
    def n_units(self) -> int:
        """Entries that go through an activation."""
        return sum(n.size for n in self.nodes() if isinstance(n, Pointwise))

    @property
    def n_affine(self) -> int:
        """Affine maps."""
        return sum(isinstance(n, Affine) for n in self.nodes())


def _topological(output: Node) -> Iterator[Node]:
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(output, False)]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((p, False) for p in reversed(node.parents) if p not in seen)


def linear_part(node: Affine, values: Sequence[np.ndarray]) -> np.ndarray:
    """Returns ``sum_i maps[i](values[i])`` for values (..., size).

    Exact in rational arithmetic where the values are `Fraction` objects.
    """
    total: Any = None
    for linear, value in zip(node.maps, values, strict=True):
        matrix = linear.matrix()
        flat = value.reshape(-1, linear.in_size)
        if value.dtype == object:
            dense = matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
            term = flat @ as_fractions(np.asarray(dense)).T
        elif scipy.sparse.issparse(matrix):
            term = (matrix @ flat.T).T
        else:
            term = flat @ matrix.T
        total = term if total is None else total + term
    return total.reshape(*values[0].shape[:-1], node.size)


def as_fractions(x: np.ndarray) -> np.ndarray:
    """Returns the same numbers as `Fraction` objects: every float is a rational."""
    flat = np.empty(x.size, object)
    flat[:] = [Fraction(float(v)) for v in x.flat]
    return flat.reshape(x.shape)


def concat_values(node: Concat, values: Sequence[np.ndarray]) -> np.ndarray:
    """Concatenates flat values (..., size) along the axis that the shapes have."""
    lead = values[0].shape[:-1]
    shaped = [
        v.reshape(*lead, *p.shape) for p, v in zip(node.parents, values, strict=True)
    ]
    return np.concatenate(shaped, axis=len(lead) + node.axis).reshape(*lead, node.size)


def _numpy_value(node: Node, values: list[np.ndarray]) -> np.ndarray:
    """The node's value (batch, size) from those of its parents."""
    match node:
        case Affine():
            out = linear_part(node, values)
            return out if node.bias is None else out + node.bias
        case Pointwise():
            _check_domain(node.activation, values[0])
            return np.asarray(node.activation.numpy(values[0]))
        case Concat():
            return concat_values(node, values)
        case Join():
            return _join_value(np, node.kind, values)
        case MaxPool():
            columns = [values[0][:, w].max(axis=1) for w in node.windows]
            return np.stack(columns, axis=1)
    raise TypeError(f"no value for {type(node).__name__}")


def _check_domain(activation: Activation, x: np.ndarray) -> None:
    if activation.positive_only and not (x > 0).all():
        raise InputError(
            message(
                f"{np.count_nonzero(~(x > 0))} of {x.size} values that reach "
                f"{activation.name} are not positive (the smallest is {x.min():.6g}).",
                "exp(log x + log y) is x y for positive x and y only "
                "([Nagase2019] Theorem 2 does not say so).",
                "Use product='squares', which is exact for every sign.",
            )
        )


def _join_value(xp: Any, kind: str, values: Sequence[Any]) -> Any:
    first, *rest = values
    for other in rest:
        if kind in ("add", "mean"):
            first = first + other
        elif kind == "subtract":
            first = first - other
        elif kind == "max":
            first = xp.maximum(first, other)
        else:
            first = first * other if kind == "product" else first / other
    return first / len(values) if kind == "mean" else first


def _jax_value(node: Node, values: list[jax.Array]) -> jax.Array:
    match node:
        case Affine():
            terms = [m.apply(v) for m, v in zip(node.maps, values, strict=True)]
            out = sum(terms[1:], terms[0]).reshape(node.shape)
            if node.bias is None:
                return out
            return out + jnp.asarray(node.bias, out.dtype).reshape(node.shape)
        case Pointwise():
            return node.activation.jax(values[0])
        case Concat():
            return jnp.concatenate(values, axis=node.axis)
        case Join():
            return _join_value(jnp, node.kind, values)
        case MaxPool():
            longest = max(len(w) for w in node.windows)
            padded = np.stack([np.resize(w, longest) for w in node.windows])
            return values[0].reshape(-1)[padded].max(axis=1).reshape(node.shape)
    raise TypeError(f"no value for {type(node).__name__}")
