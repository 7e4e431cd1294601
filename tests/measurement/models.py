"""Small networks with one kind of layer each, every value tagged."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tests.measurement.tagged import IMAGES, Case, case, conv, dense, lambda_module, tag


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
