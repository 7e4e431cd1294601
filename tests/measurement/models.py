"""Small networks whose every value can be asked for by name.

`tag` is the identity where layerwise runs a model. Within `recording` it hands the
value to a function and goes on with what that returns: the plain, slow way of reading
values and of adding zeros whose gradients are the cotangents.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx


_recorder: list[Callable[[str, jax.Array], jax.Array]] = []


def tag(name: str, x: jax.Array) -> jax.Array:
    """Returns `x`, or what the recorder in use makes of it."""
    return _recorder[-1](name, x) if _recorder else x


@contextlib.contextmanager
def recording(at: Callable[[str, jax.Array], jax.Array]) -> Iterator[None]:
    """Calls `at` with every tagged value."""
    _recorder.append(at)
    try:
        yield
    finally:
        _recorder.pop()


def explicit(
    apply: Callable[..., Any], params: Any, inputs: Any, loss: Callable[..., Any]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns every tagged value and its cotangent, all of them stored."""

    def run(zeros: dict[str, jax.Array], params: Any, inputs: Any) -> Any:
        values: dict[str, jax.Array] = {}

        def at(name: str, x: jax.Array) -> jax.Array:
            assert name not in values, name
            values[name] = x + zeros[name] if name in zeros else x
            return values[name]

        with recording(at):
            inputs = [
                at("input" if len(inputs) == 1 else f"input {i}", x)
                if jnp.issubdtype(x.dtype, jnp.floating)
                else x
                for i, x in enumerate(inputs)
            ]
            out = apply(params, *inputs)
        return loss(out), values

    shapes = jax.eval_shape(run, {}, params, inputs)[1]
    zeros = {k: jnp.zeros(v.shape, v.dtype) for k, v in shapes.items()}
    both = jax.jit(jax.grad(run, has_aux=True))
    cotangents, values = both(zeros, params, inputs)
    as_numpy = lambda tree: {k: np.asarray(v, np.float64) for k, v in tree.items()}
    return as_numpy(values), as_numpy(cotangents)


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, with what it is called on.

    Attributes:
        model: What layerwise is given.
        shapes: Of its inputs.
        plain: The tagged program, if it is not the model itself: ``apply(params, x)``.
        kwargs: Keyword arguments of the call.
        rngs: Random streams of the call.
        whole: Whether every site of the model is tagged.
        integers: Inputs are integers below this, if not 0.
        params: Parameters, for models without an init.
    """

    model: Any
    shapes: tuple[tuple[int, ...], ...] = ((3, 5),)
    plain: Callable[..., Any] | None = None
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    rngs: dict[str, jax.Array] | None = None
    whole: bool = True
    integers: int = 0
    params: Callable[[jax.Array], Any] | None = None


def lambda_module(call: Callable[..., Any]) -> nn.Module:
    """Returns a Linen module with this body."""

    class Net(nn.Module):
        @nn.compact
        def __call__(self, *inputs: Any, **kwargs: Any) -> Any:
            return call(self, *inputs, **kwargs)

    return Net()


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    """Lists a case under its function's name."""
    CASES[make.__name__] = make
    return make


def dense(name: str, width: int, x: jax.Array, **kwargs: Any) -> jax.Array:
    return tag(f"{name}.u", nn.Dense(width, name=name, **kwargs)(x))


def conv(name: str, width: int, x: jax.Array, **kwargs: Any) -> jax.Array:
    return tag(f"{name}.u", nn.Conv(width, (3, 3), name=name, **kwargs)(x))


IMAGES = ((2, 8, 8, 3),)


def _mlp(phi: Callable[[jax.Array], jax.Array], kind: str = "v") -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        x = tag(f"a.{kind}", phi(dense("a", 7, x)))
        x = tag(f"b.{kind}", phi(dense("b", 6, x)))
        return dense("c", 4, x)

    return Case(lambda_module(call))


@case
def relu() -> Case:
    return _mlp(nn.relu)


@case
def gelu() -> Case:
    return _mlp(nn.gelu)


@case
def silu() -> Case:
    return _mlp(nn.silu)


@case
def leaky_relu_with_a_slope() -> Case:
    return _mlp(lambda x: nn.leaky_relu(x, negative_slope=0.3))


@case
def custom_vjp_activation() -> Case:
    @jax.custom_vjp
    def phi(x: jax.Array) -> jax.Array:
        return jnp.sign(x)

    phi.defvjp(lambda x: (jnp.sign(x), x), lambda x, g: (g * (jnp.abs(x) < 1),))
    return _mlp(phi, "z")  # what a custom derivative is of is not looked into


@case
def gated() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        gate = tag("gate.v", nn.silu(dense("gate", 8, x)))
        x = tag("mul.merge", gate * dense("up", 8, x))
        return dense("down", 5, x)

    return Case(lambda_module(call))


@case
def raw_parameter() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        init = nn.initializers.normal(1.0)
        x = tag("w.u", jnp.einsum("bi,io->bo", x, self.param("w", init, (5, 6))))
        return dense("out", 3, tag("w.v", jnp.tanh(x)))

    return Case(lambda_module(call))


@case
def weight_norm() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        x = tag("a.u", nn.WeightNorm(nn.Dense(7, name="a"))(x))
        return dense("b", 3, tag("a.v", nn.relu(x)))

    return Case(lambda_module(call))


@case
def weight_standardization() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        w = self.param("w", nn.initializers.normal(1.0), (5, 6))
        x = tag("w.u", x @ ((w - w.mean(0)) / (w.std(0) + 0.1)))
        return dense("b", 3, tag("w.v", jnp.tanh(x)))

    return Case(lambda_module(call))


@case
def dense_general() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        x = nn.DenseGeneral((2, 4), axis=(-2, -1), name="a")(x)
        x = tag("a.v", jnp.tanh(tag("a.u", x)))
        return tag("b.u", nn.DenseGeneral(3, axis=(-2, -1), name="b")(x))

    return Case(lambda_module(call), ((3, 4, 5),))


@case
def layer_norm_and_residual() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        x = dense("a", 6, x)
        y = tag("b.v", nn.relu(dense("b", 6, nn.LayerNorm(name="n")(x))))
        return dense("c", 3, tag("add.merge", x + y))

    # The last value of `a` within its own region is the normalized one, for a merge
    # reads its pre-activation too.
    return Case(lambda_module(call), whole=False)


@case
def rms_norm() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        x = tag("a.z", nn.relu(nn.RMSNorm(name="n")(dense("a", 6, x))))
        return dense("c", 3, x)

    return Case(lambda_module(call))


@case
def group_norm() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.GroupNorm(2, name="n")(conv("a", 6, x)))
        return conv("b", 4, tag("a.z", x))

    return Case(lambda_module(call), IMAGES)


def _batch_norm(train: bool) -> Case:
    def call(self: Any, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train, name="n")(conv("a", 6, x))
        # Running averages multiply entry by entry: an activation, not a pooling.
        return conv("b", 4, tag("a.z" if train else "a.v", nn.relu(x)))

    return Case(lambda_module(call), IMAGES, kwargs={"train": train})


@case
def batch_norm_in_training() -> Case:
    return _batch_norm(True)


@case
def batch_norm_in_evaluation() -> Case:
    return _batch_norm(False)


@case
def strided_and_pooled() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        x = tag("a.v", nn.relu(conv("a", 6, x, strides=2)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        x = tag("b.v", nn.relu(conv("b", 4, tag("a.z", x))))
        return dense("c", 3, tag("b.z", x.mean((1, 2))))

    return Case(lambda_module(call), IMAGES)


@case
def depthwise() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        x = tag("a.v", nn.relu(conv("a", 6, x, feature_group_count=3)))
        x = tag("b.v", nn.silu(conv("b", 6, x, kernel_dilation=2, padding="VALID")))
        return dense("c", 3, x.reshape(2, -1))

    return Case(lambda_module(call), IMAGES)


@case
def transposed_convolution() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        x = nn.ConvTranspose(4, (3, 3), strides=(2, 2), name="a")(x)
        x = tag("a.v", nn.relu(tag("a.u", x)))
        return conv("b", 3, x, strides=2)

    return Case(lambda_module(call), ((2, 4, 4, 3),))


@case
def one_dimensional() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        x = tag("a.u", nn.Conv(5, (3,), kernel_dilation=2, name="a")(x))
        return tag("b.u", nn.Conv(4, (2,), name="b")(tag("a.v", jnp.sin(x))))

    return Case(lambda_module(call), ((3, 9, 2),))


@case
def concatenated() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        a = tag("a.v", nn.relu(conv("a", 4, x)))
        both = tag("concatenate.merge", jnp.concatenate([x, a], -1))
        return conv("b", 4, both)

    return Case(lambda_module(call), IMAGES)


@case
def squeeze_and_excite() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        x = tag("a.v", nn.relu(conv("a", 6, x)))
        s = tag("s.v", nn.relu(dense("s", 2, x.mean((1, 2)))))
        gate = tag("e.v", nn.sigmoid(dense("e", 6, s)))
        return conv("b", 3, tag("mul.merge", x * gate[:, None, None]))

    return Case(lambda_module(call), IMAGES, whole=False)


@case
def shared_weights() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        layer = nn.Dense(5, name="a")
        x = tag("a.v", jnp.tanh(tag("a.u", layer(x))))
        return tag("a#2.u", layer(x))

    return Case(lambda_module(call))


@case
def tied_embedding() -> Case:
    def call(self: Any, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(11, 6, name="e")
        x = tag("e.embedding", embed(tokens))
        x = tag("a.v", jnp.tanh(dense("a", 6, x)))
        return tag("e.u", embed.attend(x))

    return Case(lambda_module(call), ((2, 4),), integers=11)


@case
def attention_by_hand() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        q, k, v = (dense(n, 4, x) for n in ("q", "k", "v"))
        scores = tag("dot_general.merge", jnp.einsum("bid,bjd->bij", q, k))
        weights = jax.nn.softmax(scores)
        return dense("o", 3, tag("dot_general.merge#2", weights @ v))

    return Case(lambda_module(call), ((2, 6, 5),))


@case
def attention_of_flax() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        x = dense("a", 8, x)
        attention: Any = nn.MultiHeadDotProductAttention(num_heads=2, name="m")
        y = tag("m/out.u", attention(nn.LayerNorm()(x)))
        return dense("b", 3, tag("add.merge", x + y))

    return Case(lambda_module(call), ((2, 6, 5),), whole=False)


@case
def two_inputs() -> Case:
    def call(self: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        z = tag("add.merge", dense("a", 6, x) + dense("b", 6, y))
        return dense("c", 3, jnp.tanh(z))

    return Case(lambda_module(call), ((3, 5), (3, 4)), whole=False)


@case
def several_outputs() -> Case:
    def call(self: Any, x: jax.Array) -> Any:
        x = tag("a.v", nn.relu(dense("a", 6, x)))
        return {"mean": dense("b", 3, x), "rest": (dense("c", 2, x), x.shape[0])}

    return Case(lambda_module(call))


@case
def dropout() -> Case:
    def call(self: Any, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(dense("a", 9, x))
        return dense("b", 3, tag("a.z", nn.Dropout(0.5, deterministic=not train)(x)))

    key = jax.random.key(5)
    return Case(
        lambda_module(call), kwargs={"train": True}, rngs={"dropout": key}, whole=False
    )


@case
def nested_sequential() -> Case:
    class Residual(nn.Module):
        inner: Any

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return tag(
                f"add.merge{'' if self.name == 'r' else '#2'}", x + self.inner(x)
            )

    class Tagged(nn.Module):
        layer: Any
        at: str

        def __call__(self, x: jax.Array) -> jax.Array:
            return tag(self.at, self.layer(x))

    block = lambda n: nn.Sequential(
        [Tagged(nn.Dense(5, name=f"d{n}"), f"d{n}.u"), nn.relu]
    )

    def call(self: Any, x: jax.Array) -> jax.Array:
        return nn.Sequential(
            [Residual(block(0), name="r"), Residual(block(1), name="s"), nn.Dense(2)]
        )(x)

    return Case(lambda_module(call), whole=False)


@case
def vmap_within() -> Case:
    def call(self: Any, x: jax.Array) -> jax.Array:
        w = self.param("w", nn.initializers.normal(1.0), (4, 5, 3))
        x = jax.vmap(lambda w: jnp.tanh(x @ w))(w)
        return x.transpose(1, 0, 2).reshape(3, -1)

    def plain(params: Any, x: jax.Array) -> jax.Array:
        u = tag("w.u", jnp.einsum("bi,hio->hbo", x, params["params"]["w"]))
        return tag("w.v", jnp.tanh(u)).transpose(1, 0, 2).reshape(3, -1)

    return Case(lambda_module(call), plain=plain)


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
