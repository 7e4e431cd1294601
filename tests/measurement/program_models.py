"""Small networks whose program has loops, branches or parts of other libraries."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from tests.measurement.tagged import IMAGES, Case, case, lambda_module, tag


class Block(nn.Module):
    """One layer with a skip."""

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        return nn.tanh(nn.Dense(5, name="d")(x)) + x, None


def _blocks(params: Any, x: jax.Array) -> jax.Array:
    """The same blocks one after the other, from parameters stacked over them."""
    for i in range(3):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params["params"]["blocks"]["d"])
        u = tag(f"blocks/d[{i}].u", x @ p["kernel"] + p["bias"])
        v = tag(f"blocks/d[{i}].v", jnp.tanh(u))
        x = tag(f"add[{i}].merge", v + x)
    return x


def _scanned(block: Any) -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        scanned = nn.scan(
            block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3
        )
        return scanned(name="blocks")(x, None)[0]

    return Case(lambda_module(call), plain=_blocks)


@case
def scanned() -> Case:
    return _scanned(Block)


@case
def remat_in_a_scan() -> Case:
    return _scanned(nn.remat(Block, prevent_cse=False))


@case
def rematerialized() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        return nn.remat(Block)(name="b")(x)[0]

    def plain(params: Any, x: jax.Array) -> jax.Array:
        p = params["params"]["b"]["d"]
        v = tag("b/d.v", jnp.tanh(tag("b/d.u", x @ p["kernel"] + p["bias"])))
        return tag("add.merge", v + x)

    return Case(lambda_module(call), plain=plain)


@case
def a_cond() -> Case:
    def model(p: Any, x: jax.Array) -> jax.Array:
        yes = lambda x: jnp.tanh(x @ p["yes"])
        no = lambda x: jax.nn.relu(x @ p["no"])
        x = jax.lax.cond(x[0, 0] < 100.0, yes, no, x @ p["in"])
        return x @ p["out"]

    def plain(p: Any, x: jax.Array) -> jax.Array:
        x = tag("in.u", x @ p["in"])
        x = tag("yes.v", jnp.tanh(tag("yes.u", x @ p["yes"])))
        return tag("out.u", tag("cond.merge", x) @ p["out"])

    return Case(model, plain=plain, params=_square("in", "yes", "no", "out"))


@case
def a_gru() -> Case:
    def step(p: Any, h: jax.Array, x: jax.Array, i: str) -> jax.Array:
        both = tag(f"concatenate{i}.merge", jnp.concatenate([h, x], -1))
        gate = tag(f"gate{i}.v", jax.nn.sigmoid(tag(f"gate{i}.u", both @ p["gate"])))
        new = tag(f"new{i}.v", jnp.tanh(tag(f"new{i}.u", both @ p["new"])))
        kept = tag(f"mul{i}.merge", (1 - gate) * h)
        return tag(f"add{i}.merge", kept + tag(f"mul{i}.merge#2", gate * new))

    def model(p: Any, x: jax.Array) -> jax.Array:
        body = lambda h, x: (step(p, h, x, ""), None)
        return jax.lax.scan(body, jnp.zeros((3, 5), x.dtype), x.swapaxes(0, 1))[0]

    def plain(p: Any, x: jax.Array) -> jax.Array:
        h = jnp.zeros((3, 5), x.dtype)
        for i in range(4):
            h = step(p, h, x[:, i], f"[{i}]")
        return h

    def params(key: jax.Array) -> Any:
        one, two = jax.random.split(key)
        return {
            "gate": jax.random.normal(one, (7, 5)),
            "new": jax.random.normal(two, (7, 5)),
        }

    return Case(model, ((3, 4, 2),), plain=plain, params=params, whole=False)


def _square(*names: str) -> Callable[[jax.Array], Any]:
    def draw(key: jax.Array) -> Any:
        keys = jax.random.split(key, len(names))
        return {
            n: jax.random.normal(k, (5, 5)) / 2
            for n, k in zip(names, keys, strict=True)
        }

    return draw


@case
def nnx_module() -> Case:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.one = nnx.Conv(3, 5, (3, 3), rngs=rngs)
            self.norm = nnx.LayerNorm(5, rngs=rngs)
            self.two = nnx.Linear(5 * 64, 4, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            x = tag("one.u", self.one(x))
            x = tag("one.z", nnx.relu(self.norm(x)))
            return tag("two.u", self.two(x.reshape(x.shape[0], -1)))

    return Case(Net(nnx.Rngs(0)), IMAGES)


@case
def callable_tree() -> Case:
    """Parameters and program in one object, as in Equinox."""

    def model(net: Any, x: jax.Array) -> jax.Array:
        return net(x)

    return Case(model, params=lambda key: Tree(_square("a", "b")(key)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Tree:
    """A module that is a pytree."""

    weights: dict[str, jax.Array]

    def __call__(self, x: jax.Array) -> jax.Array:
        x = tag("weights.v", jnp.tanh(tag("weights.u", x @ self.weights["a"])))
        return tag("weights#2.u", x @ self.weights["b"])
