"""L: the kinds of layers, with the article's errors corrected."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import layerwise as lw
from experiments.claims.layer_effects import probe
from experiments.claims.ledger import Outcome, claim, judge, pm, within, worst
from layerwise.nn import layers


@claim(
    "L1", "Every kind of layer: forward, gradient, count and moment rule.", slow=True
)
def moment_rules() -> Outcome:
    wrong, ruled = [], 0
    for kind in layers.kinds():
        for ratio in probe(kind, draws=100).values():
            if ratio.grade in ("-", "measured"):
                continue
            ruled += 1
            if ratio.sigmas > 5:
                wrong.append(kind.name)
    return Outcome(
        judge(not wrong),
        "",
        f"{len(layers.kinds())} kinds",
        f"{ruled - len(wrong)} of {ruled} rules within 5 standard errors of samples, "
        "beyond the tolerance they state",
    )


@claim("L2", "A dense layer of a one-hot vector looks a row up.")
def lookup() -> Outcome:
    table = jax.random.normal(jax.random.key(0), (50, 8))
    index = jax.random.randint(jax.random.key(1), (200,), 0, 50)
    error = worst(
        np.asarray(jax.nn.one_hot(index, 50) @ table), np.asarray(table[index])
    )

    rows = np.square(np.asarray(jax.random.normal(jax.random.key(2), (400, 50, 8))))
    second = rows[:, 3].mean(-1)  # E[u^2] of one row, over networks
    return Outcome(
        judge(error == 0.0 and within(second, 1.0, 5)),
        "equal",
        f"error {error:g}",
        f"E[u^2] / Var[w] = {pm(second)}: fan-in 1, not the vocabulary's 50",
    )


@claim("L3", "Dropout keeps the mean and multiplies the second moment by 1/(1 - p).")
def dropout() -> Outcome:
    held, said = [], []
    x = jnp.abs(jax.random.normal(jax.random.key(0), (64, 64)))
    for p in (0.1, 0.5, 0.8):

        def one(key, p=p):
            y = jnp.where(jax.random.bernoulli(key, 1 - p, x.shape), x / (1 - p), 0.0)
            return y.mean() / x.mean(), jnp.square(y).mean() / jnp.square(x).mean()

        mean, second = jax.vmap(one)(jax.random.split(jax.random.key(1), 300))
        held += [
            within(np.asarray(mean), 1.0, 5),
            within(np.asarray(second), 1 / (1 - p), 5),
        ]
        said.append(f"{pm(np.asarray(second))} for {1 / (1 - p):.3g}")
    return Outcome(
        judge(all(held)),
        "1/(1 - p)",
        "1.11, 2, 5 for p = .1, .5, .8",
        ", ".join(said),
        "A mask is drawn for every example and step, not once an epoch.",
    )


@claim("L4", "Softmax with cross-entropy has the gradient y - t.")
def cross_entropy() -> Outcome:
    logits = jax.random.normal(jax.random.key(0), (32, 10))
    target = jax.nn.one_hot(jax.random.randint(jax.random.key(1), (32,), 0, 10), 10)
    grad = jax.grad(lambda u: optax.softmax_cross_entropy(u, target).sum())(logits)
    want = np.asarray(jax.nn.softmax(logits) - target, np.float64)
    error = worst(np.asarray(grad), want)
    return Outcome(judge(error < 1e-5), "y - t", f"error {error:.0e}")


@claim("L5", "All layers are differentiable; sampling has differentiable substitutes.")
def differentiable() -> Outcome:
    kink = [float(jax.grad(jax.nn.relu)(jnp.float32(x))) for x in (-1e-6, 1e-6)]
    logits = jnp.array([1.0, 0.0, -1.0])
    law = np.asarray(jax.nn.softmax(logits), np.float64)
    keys = jax.random.split(jax.random.key(0), 20_000)
    gaps = {}
    for temperature in (1.0, 0.1, 0.01):
        sample = jax.vmap(
            lambda k, t=temperature: layers.gumbel_softmax(k, logits, temperature=t)
        )(keys)
        one_hot = jax.nn.one_hot(sample.argmax(-1), 3)
        gaps[temperature] = float(jnp.abs(sample - one_hot).mean())
        chosen = np.asarray(one_hot)
    right = all(within(chosen[:, i], law[i], 5) for i in range(3))
    falls = gaps[1.0] > gaps[0.1] > gaps[0.01]
    smooth = kink[0] == kink[1]
    return Outcome(
        judge(smooth and right and falls, right and falls),
        "differentiable",
        f"slope of ReLU on either side of 0: {kink[0]:g} and {kink[1]:g}",
        "Gumbel-softmax: distance from one-hot "
        + ", ".join(f"{v:.2g} (T = {t:g})" for t, v in gaps.items()),
        "Almost everywhere; the categorical law is reached as the temperature falls.",
    )


@claim("L6", "Layers form any directed graph; moments follow the graph.")
def any_graph() -> Outcome:
    model = lw.zoo.entry("cifar_densenet").build_small()
    x = jax.random.normal(jax.random.key(0), (4, *model.input_shape))
    predicted = lw.predict(model, None, x)
    measured = lw.measure(model, None, x, draws=64)
    got = measured.curve("forward")[measured.ensemble][:, 1:]
    want = predicted.curve("forward")[1:]
    sigmas = np.abs(got.mean(0) - want) / (got.std(0, ddof=1) / 8 + 1e-3 * want)
    return Outcome(
        judge(bool(sigmas.max() < 5)),
        "",
        predicted.coverage.partition(";")[0].rstrip("."),
        f"DenseNet: {len(want)} layers, at most {sigmas.max():.1f} standard errors off",
    )
