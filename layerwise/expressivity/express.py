"""Any model of convolutions, pools, merges and ReLUs as concat + affine + ReLU.

`express` is [Nagase2019] applied to real blocks: the residual sum becomes one affine
map of a concatenation (Theorem 3), max pooling a tournament of ReLUs with skips
(Theorem 1), batch normalization in evaluation mode part of the affine map before it, a
leaky ReLU two ReLUs' worth of hinges. The result is compared with the model by running
both.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.errors import InvalidArgumentError, UnsupportedModelError, message
from layerwise.expressivity import compile as compiler
from layerwise.expressivity.graph import Concat, Join, MaxPool, Net, Pointwise
from layerwise.expressivity.translate import traced
from layerwise.types import PyTree


@dataclasses.dataclass(frozen=True, eq=False)
class Expressed:
    """A model in concat + affine + activation form.

    Attributes:
        net: The compiled graph; ``net.apply`` is traceable, ``net(x)`` is float64.
        original: The graph before compilation, with its merges and pools.
        relative_error: Largest difference from the model over the inputs that were
            given and two random ones of the same size, over the largest output.
    """

    net: Net
    original: Net
    relative_error: float

    def __call__(self, x: Any) -> jax.Array:
        """Returns the model's output, at the input shape that it was expressed at."""
        return self.net.apply(x)

    @property
    def n_layers(self) -> int:
        """Activations on the longest path."""
        return self.net.n_layers

    @property
    def n_units(self) -> int:
        """Entries that go through an activation, batch included."""
        return self.net.n_units

    @property
    def n_affine(self) -> int:
        """Affine maps."""
        return self.net.n_affine

    def counts(self) -> dict[str, int]:
        """Returns what there was and what it became, by kind."""
        before, after = self.original.nodes(), self.net.nodes()
        return {
            "merges before": sum(isinstance(n, Join | Concat) for n in before),
            "max pools before": sum(isinstance(n, MaxPool) for n in before),
            "activation layers before": self.original.n_layers,
            "units before": self.original.n_units,
            "activation layers": self.n_layers,
            "units": self.n_units,
            "affine maps": self.n_affine,
            "concatenations": sum(
                isinstance(n, Concat)
                or (not isinstance(n, Pointwise) and len(n.parents) > 1)
                for n in after
            ),
        }


def express(
    model: Any,
    inputs: Any,
    *,
    params: PyTree = None,
    key: jax.Array | None = None,
    kwargs: Mapping[str, Any] | None = None,
    carry: compiler.Carry = "skip",
    rtol: float = 1e-4,
) -> Expressed:
    """Rewrites a model into concat + affine + ReLU form and compares the two.

    Args:
        model: A Linen or NNX module, or a function ``apply(params, x)``, made of dense
            and convolution layers, elementwise activations, pooling, sums,
            concatenations and normalization in evaluation mode. Activations that are
            not piecewise linear stay as they are.
        inputs: One array, batch axis first. The form is for this shape.
        params: Parameters of a Linen module or function; drawn if None.
        key: For that draw; ``jax.random.key(0)`` if None.
        kwargs: Keyword arguments of the model's call.
        carry: How max pooling keeps its running maximum (see `compile_net`).
        rtol: Relative difference above which an error is raised. The default is for
            float32, where the two forms round differently.

    Returns:
        The form, runnable, with its counts and the difference that was found.

    Raises:
        InputError: If the model cannot be called on `inputs`.
        UnsupportedModelError: If the model has a step that is none of these, or the
            two forms differ by more than `rtol`.
        InvalidArgumentError: If `rtol` is not positive.

    Example:
        >>> import flax.linen as nn
        >>> model = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(1)])
        >>> form = express(model, jnp.ones((1, 4)))
        >>> form.n_layers, form.n_units
        (1, 8)

    References:
        [Nagase2019] Theorems 1 to 4, Proposition 1.
    """
    if not rtol > 0:
        raise InvalidArgumentError(
            message(
                f"rtol={rtol}.",
                "Two ways to add the same numbers round differently.",
                "Use a positive tolerance; 1e-4 fits float32.",
            )
        )
    original, run = traced(model, inputs, params=params, key=key, kwargs=kwargs)
    net = compiler.compile_net(original, carry=carry, product="squares")
    error = _difference(run, net.apply, jnp.asarray(inputs))
    if not error <= rtol:
        raise UnsupportedModelError(
            message(
                f"The rewritten model differs from the model by {error:.3g}, relative.",
                "The two forms should agree to rounding. Inputs so large that float32 "
                "rounding shows, or 'nonnegative' carries of negative values, break "
                "that.",
                f"Scale the inputs, use carry='skip', or pass rtol > {error:.3g}.",
            )
        )
    return Expressed(net, original, error)


def _difference(
    run: Callable[[jax.Array], jax.Array],
    form: Callable[[jax.Array], jax.Array],
    x: jax.Array,
) -> float:
    """Largest relative difference on `x` and on two draws of noise of its size."""
    size = jnp.sqrt(jnp.mean(jnp.square(x)))
    size = jnp.where(size > 0, size, 1.0).astype(x.dtype)
    points = [x]
    for draw in range(2):
        points.append(size * jax.random.normal(jax.random.key(draw), x.shape, x.dtype))
    worst = 0.0
    for point in points:  # not jitted: XLA would fold the weights, slowly
        a, b = (np.asarray(f(point), np.float64) for f in (run, form))
        worst = max(worst, float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30)))
    return worst
