"""The fallback: moments of a value, measured on networks drawn from the law.

Where no rule is sound the program itself is run on a few dozen networks, forward and
backward, and the moments of the value in question (with its pairs and its marginal law)
are taken from what comes out. Everything that depends on it is graded `measured`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layerwise.theory import data, marginal
from layerwise.theory.context import RuleContext
from layerwise.theory.state import Field, Grade, State, mix
from layerwise.tracing.graph import evaluate


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """Runs the model on drawn networks.

    Attributes:
        ctx: The context.
        inputs: The data inputs.
        draws: Number of networks.
        seed: Seed of their keys.
        log_scale: Leaf name -> logarithm of the factor that it is multiplied by.
    """

    ctx: RuleContext
    inputs: Sequence[Any]
    draws: int = 48
    seed: int = 11
    log_scale: Mapping[str, float] | None = None

    @functools.cached_property
    def _leaves(self) -> Callable[[jax.Array], list[jax.Array]]:
        """The leaves of a drawn network: compiled once for all that is sampled."""
        return jax.jit(lambda key: jax.tree.leaves(self.ctx.law.draw(key)))

    def _args(self, key: jax.Array) -> list[Any]:
        leaves = list(self._leaves(key))
        names = self.ctx.traced.leaf_values
        for i, name in enumerate(names if self.log_scale else ()):
            assert self.log_scale is not None
            if name in self.log_scale:
                leaves[i] = leaves[i] * np.float32(np.exp(self.log_scale[name]))
        return [*leaves, *self.inputs]

    def forward(self, values: Sequence[int], label: dict[int, str]) -> dict[int, State]:
        """Returns the states of some values."""
        graph = self.ctx.traced.graph

        @jax.jit
        def values_of(args: list[Any]) -> dict[int, jax.Array]:
            seen: dict[int, jax.Array] = {}

            def on_value(value: int, x: Any) -> Any:
                if value in values:
                    seen[value] = x
                return x

            evaluate(graph, args, on_value=on_value)
            return seen

        def run(key: jax.Array) -> dict[int, jax.Array]:
            return values_of(self._args(key))

        return self._collect(run, values, label)

    def moments_back(self, values: Sequence[int], label: str) -> dict[int, State]:
        """Returns mean and second moment of the cotangents of some values."""
        run = self._pullback(values)

        @jax.jit
        def moments(
            args: list[Any], key: jax.Array
        ) -> dict[int, tuple[jax.Array, jax.Array]]:
            found = run(args, key)
            wide = {v: x.astype(jnp.float32) for v, x in found.items()}
            return {v: (x.mean(), jnp.square(x).mean()) for v, x in wide.items()}

        means, seconds = np.zeros(len(values)), np.zeros(len(values))
        for key in jax.random.split(jax.random.key(self.seed), self.draws):
            got = moments(self._args(jax.random.fold_in(key, 0)), key)
            means += [float(got[v][0]) / self.draws for v in values]
            seconds += [float(got[v][1]) / self.draws for v in values]
        return {
            v: State(
                (),
                ((1, Field(np.asarray(m), np.asarray([s]), ())),),
                Grade.MEASURED,
                Grade.MEASURED,
                frozenset([label]),
                frozenset([v]),
            )
            for v, m, s in zip(values, means, seconds, strict=True)
        }

    def backward(
        self, values: Sequence[int], label: dict[int, str]
    ) -> dict[int, State]:
        """Returns the states of the cotangents of some values."""
        pulled = jax.jit(self._pullback(values))

        def run(key: jax.Array) -> dict[int, jax.Array]:
            return pulled(self._args(jax.random.fold_in(key, 0)), key)

        return self._collect(run, values, label)

    def _pullback(self, values: Sequence[int]) -> Callable[..., dict[int, jax.Array]]:
        """Returns ``arguments, key -> the cotangents of some values``."""
        graph = self.ctx.traced.graph
        avals = graph.avals

        def run(args: list[Any], key: jax.Array) -> dict[int, jax.Array]:
            def loss(shifts: dict[int, jax.Array]) -> jax.Array:
                def on_value(value: int, x: Any) -> Any:
                    return x + shifts[value] if value in shifts else x

                outputs = evaluate(graph, args, on_value=on_value)
                total = jnp.zeros((), jnp.float32)
                for i, y in enumerate(outputs):
                    if jnp.issubdtype(y.dtype, jnp.floating):
                        sign = jax.random.rademacher(
                            jax.random.fold_in(key, i + 1), y.shape, y.dtype
                        )
                        total += jnp.sum(sign * y, dtype=jnp.float32)
                return total

            zero = {v: jnp.zeros(avals[v].shape, avals[v].dtype) for v in values}
            return jax.grad(loss)(zero)

        return run

    def _collect(
        self, run: Any, values: Sequence[int], label: dict[int, str]
    ) -> dict[int, State]:
        fields: dict[int, list[Field]] = {v: [] for v in values}
        entries: dict[int, list[np.ndarray]] = {v: [] for v in values}
        for key in jax.random.split(jax.random.key(self.seed), self.draws):
            for v, x in run(key).items():
                array = np.asarray(jnp.abs(x) if jnp.iscomplexobj(x) else x, np.float64)
                state = data.of_array(self.ctx, array)
                fields[v].append(state.average())
                flat = array.ravel()
                entries[v].append(flat[:: max(1, flat.size // 4096)])
        found = {}
        for v in values:
            shape = self.ctx.shape(v)
            axes = data.roles(shape, self.ctx.batch)
            law = marginal.of_samples(np.concatenate(entries[v]))
            field = mix(fields[v], [1 / self.draws] * self.draws)
            channels = shape[axes.index("c")] if "c" in axes else 1
            found[v] = State(
                axes,
                ((channels, field.replace(shape=law)),),
                Grade.MEASURED,
                Grade.MEASURED,
                frozenset([label[v]]),
                frozenset([v]),
            )
        return found
