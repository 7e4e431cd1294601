"""Training a classifier: what every experiment that trains shares."""

import dataclasses
import functools
from inspect import signature
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

import layerwise as lw


class Images(NamedTuple):
    """Images and their classes, as they lie in memory.

    Attributes:
        x: `(n, height, width, channels)`; what a network takes (float32), or bytes, a
            quarter of the memory, which are scaled as they are taken.
        y: Classes.
        scale: What bytes are divided by, once 0 to 255 is -1 to 1.
    """

    x: Any
    y: Any
    scale: Any = 1.0

    def take(self, chosen: Any = slice(None)) -> tuple[jax.Array, Any]:
        """Returns some images as a network takes them, and their classes."""
        x = jnp.asarray(self.x)[chosen]
        if x.dtype == jnp.uint8:
            x = (x.astype(jnp.float32) / 127.5 - 1.0) / self.scale
        return x, jnp.asarray(self.y)[chosen]


class Data(NamedTuple):
    """Images with their classes, split in two; see `Images` for what they are.

    Attributes:
        x: Training images, `(n, height, width, channels)`.
        y: Their classes.
        x_test: Test images.
        y_test: Their classes.
        scale: Of bytes.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    scale: float = 1.0

    @property
    def train(self) -> Images:
        """The training images, on the device."""
        return Images(jnp.asarray(self.x), jnp.asarray(self.y), self.scale)

    @property
    def test(self) -> Images:
        """The test images, on the device."""
        return Images(jnp.asarray(self.x_test), jnp.asarray(self.y_test), self.scale)


def digits(
    size: int = 8, *, flat: bool = False, channels: int = 1, seed: int = 0
) -> Data:
    """Returns scikit-learn's 1,797 digits, 1,437 of them for training.

    Args:
        size: Height and width; the 8x8 images are enlarged bilinearly.
        flat: Whether an image is one vector.
        channels: Equal channels of an image.
        seed: Of the split.
    """
    from sklearn.datasets import load_digits

    images, classes = load_digits(return_X_y=True)
    x = jnp.asarray(images, jnp.float32).reshape(-1, 8, 8, 1) / 8.0 - 1.0
    if size != 8:
        x = jax.image.resize(x, (len(x), size, size, 1), "bilinear")
    x = np.asarray(x / jnp.sqrt(jnp.square(x).mean()))
    x = np.repeat(x, channels, axis=-1)
    if flat:
        x = x.reshape(len(x), -1)
    order = np.asarray(jax.random.permutation(jax.random.key(seed), len(x)))
    x, y = x[order], np.asarray(classes, np.int32)[order]
    return Data(x[:1437], y[:1437], x[1437:], y[1437:])


def draw_parameters(model: nn.Module, x: Any, key: jax.Array, scheme: str) -> Any:
    """Returns ``lw.initialize(model, x, key, scheme)``, drawn without compiling it.

    A hundred draws in one program take seconds to compile, and one by one no time.
    """
    law = lw.scheme_law(model, jnp.asarray(x), scheme)
    return law.place(law(key))


class Trained(NamedTuple):
    """What training gave.

    Attributes:
        variables: The model's variables.
        losses: Training loss at every step.
    """

    variables: Any
    losses: np.ndarray


@dataclasses.dataclass(frozen=True)
class Sgd:
    """SGD with momentum on cross-entropy, one compiled program for each step.

    Steps follow each other in Python: on CPUs XLA runs convolutions inside a loop of
    its own up to ten times slower than alone, and elsewhere a step is called before the
    last one has ended.

    Attributes:
        model: A Linen classifier; called with ``train=True`` where it takes that.
        momentum: Of SGD.
        weight_decay: Added to the gradient, times the parameters.
        compute: Type that the network computes in, "float32" or "bfloat16". Parameters,
            loss, updates and running statistics are float32 in either.
    """

    model: nn.Module
    momentum: float = 0.9
    weight_decay: float = 1e-4
    compute: str = "float32"

    @property
    def _rule(self) -> optax.GradientTransformation:
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay), optax.sgd(1.0, self.momentum)
        )

    def start(self, variables: Any) -> dict[str, Any]:
        """Returns the state before the first step."""
        return {"variables": variables, "moments": self._rule.init(variables["params"])}

    def loss(self, params: Any, rest: Any, x: jax.Array, y: jax.Array) -> Any:
        """Returns the mean loss of a batch, and the new collections beside `params`.

        Args:
            params: The parameters.
            rest: The model's other collections.
            x: Images.
            y: Classes.
        """
        out, new = self.model.apply(
            {"params": _cast(params, self.compute), **rest},
            x.astype(self.compute),
            mutable=list(rest),
            **train_mode(self.model),
        )
        logits = out.astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return losses.mean(), new

    @functools.partial(jax.jit, static_argnums=0)
    def step(
        self, state: dict[str, Any], images: Images, chosen: jax.Array, rate: jax.Array
    ) -> tuple[dict[str, Any], jax.Array]:
        """Returns the state after one update, and the loss before it.

        Args:
            state: From `start` or the last step.
            images: All training images.
            chosen: The indices of the batch.
            rate: Learning rate.
        """
        params, rest = split(state["variables"])
        value_and_grad = jax.value_and_grad(self.loss, has_aux=True)
        (loss, new), grads = value_and_grad(params, rest, *images.take(chosen))
        updates, moments = self._rule.update(grads, state["moments"], params)
        updates = jax.tree.map(lambda u: rate * u, updates)
        variables = {"params": optax.apply_updates(params, updates), **new}
        return {"variables": variables, "moments": moments}, loss

    @functools.partial(jax.jit, static_argnums=0)
    def accuracy(self, variables: Any, images: Images) -> jax.Array:
        """Returns the share of images whose largest output is that of their class."""
        params, rest = split(variables)
        x, y = images.take()
        low = {"params": _cast(params, self.compute), **rest}
        out = jnp.asarray(self.model.apply(low, x.astype(self.compute)))
        return (out.argmax(-1) == y).mean()


def split(variables: Any) -> tuple[Any, dict[str, Any]]:
    """Returns the parameters, and all other collections."""
    return variables["params"], {k: v for k, v in variables.items() if k != "params"}


def _cast(params: Any, kind: str) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(kind), params)


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
    """Trains with batches drawn with replacement, at a constant learning rate.

    Once a loss is not finite nothing more is computed: the losses after it are NaN. The
    running averages of batch normalization lag behind where steps are few, so at the
    end they are replaced by the moments over the training images.

    Args:
        model: A Linen classifier.
        variables: What ``model.init`` returned.
        data: The images.
        steps: Updates.
        learning_rate: Constant.
        batch: Examples a step.
        momentum: Of SGD.
        weight_decay: Added to the gradient, times the parameters.
        key: Of the batches.
    """
    sgd = Sgd(model, momentum, weight_decay)
    state, losses = sgd.start(variables), np.full(steps, np.nan, np.float32)
    images = data.train
    chosen = with_replacement(key, steps, batch, len(data.x))
    for step, rows in enumerate(chosen):
        state, loss = sgd.step(state, images, rows, jnp.float32(learning_rate))
        losses[step] = loss
        if not np.isfinite(losses[step]):
            break
    return Trained(_settled(model, state["variables"], images.take()[0]), losses)


def train_as_configured(
    model: nn.Module, data: Data, config: ConfigDict, start: jax.Array, order: jax.Array
) -> Trained:
    """Trains from the model's own initialization, as the configuration says.

    Args:
        model: A Linen classifier.
        data: The images.
        config: Its `steps`, `learning_rate` and `batch` are read.
        start: Key of the initialization.
        order: Key of the batches.
    """
    return train(
        model,
        model.init(start, jnp.asarray(data.x[:2])),
        data,
        steps=config.steps,
        learning_rate=config.learning_rate,
        batch=config.batch,
        key=order,
    )


@functools.partial(jax.jit, static_argnums=0)
def _settled(model: nn.Module, variables: Any, x: jax.Array) -> Any:
    """Returns the variables with the moments over `x` in place of running averages."""
    if "batch_stats" not in variables:
        return variables
    new = 1.0 - nn.BatchNorm.momentum  # the weight of the newest batch
    nothing = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    _, changed = model.apply(
        {**variables, "batch_stats": nothing},
        x,
        mutable=["batch_stats"],
        **train_mode(model),
    )
    stats = jax.tree.map(lambda share: share / new, changed["batch_stats"])
    return {**variables, "batch_stats": stats}


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def with_replacement(key: jax.Array, steps: int, batch: int, n: int) -> jax.Array:
    """Returns the indices of `steps` batches of `n` images."""
    draw = lambda key: jax.random.randint(key, (batch,), 0, n)
    return jax.vmap(draw)(jax.random.split(key, steps))


def train_mode(model: nn.Module) -> dict[str, Any]:
    """Returns the keyword that a model is called with in training, if it has one."""
    return {"train": True} if "train" in signature(model.__call__).parameters else {}


def error_rate(model: nn.Module, variables: Any, data: Data) -> float:
    """Returns the share of test images whose largest output is of another class."""
    return 1.0 - float(Sgd(model).accuracy(variables, data.test))
