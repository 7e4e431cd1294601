"""Training in one compiled loop: what every experiment that trains shares."""

import functools
from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax


class Data(NamedTuple):
    """Images in [-1, 1] with their classes, split in two.

    Attributes:
        x: Training images, `(n, height, width, channels)`.
        y: Their classes.
        x_test: Test images.
        y_test: Their classes.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def digits(size: int = 8, *, flat: bool = False, seed: int = 0) -> Data:
    """Returns scikit-learn's 1,797 digits, 1,437 of them for training.

    Args:
        size: Height and width; the 8x8 images are enlarged bilinearly.
        flat: Whether an image is one vector.
        seed: Of the split.
    """
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    x = jnp.asarray(images, jnp.float32).reshape(-1, 8, 8, 1) / 8.0 - 1.0
    if size != 8:
        x = jax.image.resize(x, (len(x), size, size, 1), "bilinear")
    x = np.asarray(x / jnp.sqrt(jnp.square(x).mean()))
    if flat:
        x = x.reshape(len(x), -1)
    order = np.asarray(jax.random.permutation(jax.random.key(seed), len(x)))
    x, y = x[order], np.asarray(classes, np.int32)[order]
    return Data(x[:1437], y[:1437], x[1437:], y[1437:])


class Trained(NamedTuple):
    """What training gave.

    Attributes:
        variables: The model's variables.
        losses: Training loss at every step.
    """

    variables: Any
    losses: np.ndarray


def train(
    model: nn.Module,
    variables: Any,
    data: Data,
    *,
    steps: int,
    learning_rate: float,
    batch: int = 64,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    key: jax.Array,
) -> Trained:
    """Trains by SGD with momentum on cross-entropy; the whole run is one program.

    Args:
        model: A Linen classifier; called with ``train=True`` where it takes that.
        variables: What ``model.init`` returned.
        data: The images.
        steps: Updates.
        learning_rate: Constant.
        batch: Examples a step, drawn with replacement.
        momentum: Of SGD.
        weight_decay: Added to the gradient, times the parameters.
        key: Of the batches.
    """
    run = _program(model, steps, batch, momentum, weight_decay)
    params = variables["params"]
    state = {k: v for k, v in variables.items() if k != "params"}
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    params, state, losses = run(params, state, x, y, key, jnp.float32(learning_rate))
    return Trained({"params": params, **state}, np.asarray(losses))


def train_mode(model: nn.Module) -> dict[str, Any]:
    """Returns the keyword that a model is called with in training, if it has one."""
    return {"train": True} if "train" in signature(model.__call__).parameters else {}


@functools.lru_cache(maxsize=16)
def _program(
    model: nn.Module, steps: int, batch: int, momentum: float, weight_decay: float
) -> Callable[..., Any]:
    """Returns the compiled loop, for any parameters, data and learning rate."""
    mode = train_mode(model)
    rule = optax.chain(
        optax.add_decayed_weights(weight_decay), optax.sgd(1.0, momentum)
    )

    def loss_of(params: Any, state: Any, x: jax.Array, y: jax.Array) -> Any:
        out, new = model.apply(
            {"params": params, **state}, x, mutable=list(state), **mode
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(out, y).mean()
        return loss, new

    def run(
        params: Any, state: Any, x: jax.Array, y: jax.Array, key: Any, rate: jax.Array
    ) -> Any:
        def step(carry: Any, key: jax.Array) -> Any:
            params, state, moments = carry
            chosen = jax.random.randint(key, (batch,), 0, len(x))
            (loss, state), grads = jax.value_and_grad(loss_of, has_aux=True)(
                params, state, x[chosen], y[chosen]
            )
            updates, moments = rule.update(grads, moments, params)
            scaled = jax.tree.map(lambda u: rate * u, updates)
            return (optax.apply_updates(params, scaled), state, moments), loss

        carry = (params, state, rule.init(params))
        (params, state, _), losses = jax.lax.scan(
            step, carry, jax.random.split(key, steps)
        )
        return params, state, losses

    return jax.jit(run)


def error_rate(apply: Callable[[jax.Array], jax.Array], data: Data) -> float:
    """Returns the share of test images whose largest output is of another class."""
    out = jax.jit(apply)(jnp.asarray(data.x_test))
    return float((np.asarray(out).argmax(-1) != data.y_test).mean())
