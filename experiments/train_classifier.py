r"""Trains a classifier under schemes, learning rates and seeds: the paper's Table 4.

Every run has a folder of its own with one line of metrics per epoch and a checkpoint.
A run that was killed continues where its last whole epoch ended, with the same numbers;
a finished one is skipped. Writes ``runs.csv`` (a row per run and epoch), ``table.csv``
(the table) and ``accuracy.png`` into the work directory.

    python -m experiments.train_classifier \
        --config=experiments/configs/train_classifier.py:quick --workdir=runs/digits
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from scipy import stats
from tqdm import tqdm

import layerwise as lw
from experiments import data
from experiments.launch import (
    check_choices,
    check_counts,
    check_positive,
    check_schemes,
    launch,
)
from experiments.training import Data, Sgd, accuracy, digits
from experiments.workdir import append_line, replace_file, whole_lines
from layerwise.errors import InvalidArgumentError, message


METRICS = ("loss", "accuracy")


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        scheme: How the parameters are drawn.
        rate: Learning rate.
        seed: Of parameters and batches.
    """

    scheme: str
    rate: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.scheme.replace(':', '-')}_{self.rate:g}_{self.seed}"


def runs_of(config: ConfigDict) -> list[Run]:
    """Returns the runs of a configuration, schemes side by side for every seed."""
    return [
        Run(scheme, rate, seed)
        for seed in range(config.first_seed, config.first_seed + config.seeds)
        for rate in config.learning_rates
        for scheme in config.schemes
    ]


def load(config: ConfigDict) -> Data:
    """Returns the data of a configuration.

    Raises:
        InvalidArgumentError: If the data set is unknown.
        InputError: If its data is not there; the message says what to download.
    """
    size, given = build(config).input_shape[0], config.tfds
    if config.data == "digits":
        return digits(size, channels=3)
    if config.data != "fungi10" and not str(config.data).startswith("tfds:"):
        raise InvalidArgumentError(
            message(
                f"data={config.data!r}.",
                "The data sets are: digits (scikit-learn's, no download), fungi10, and "
                "tfds:NAME for what lies prepared in tfds.data_dir.",
                "Pass --config.data=digits.",
            )
        )
    name = config.data.removeprefix("tfds:")
    check_choices("tfds.fit", [given.fit], data.FITS)
    fields = {}
    if name == "fungi10":
        from experiments.datasets import fungi10

        check_choices("tfds.order", [given.order], fungi10.ORDERS)
        check_choices("tfds.split", [given.split], fungi10.SPLITS)
        check_choices("tfds.corrupt", [given.corrupt], ("fatal", "skip"))
        fields = {k: given[k] for k in ("order", "split", "corrupt")}
    builder = data.prepare(name, given.data_dir, given.manual_dir, **fields)
    return data.load(builder, size, fit=given.fit)


def build(config: ConfigDict) -> nn.Module:
    """Returns the model of a configuration."""
    return lw.zoo.create(config.model, **config.model_args.to_dict())


def check(config: ConfigDict) -> None:
    """Raises what is wrong with the configuration, before any work is done."""
    check_counts(config, "epochs", "batch", "seeds")
    check_positive(config, "learning_rates")
    images, model = load(config), build(config)
    check_schemes(model, images.x[:2], config.schemes)


class Epoch:
    """One pass over the training data, and the test error after it.

    Args:
        model: The classifier.
        images: The data.
        config: Of the optimizer.
    """

    def __init__(self, model: nn.Module, images: Data, config: ConfigDict) -> None:
        self.sgd = Sgd(model, config.momentum, config.weight_decay)
        self.batch = config.batch
        self.images = (jnp.asarray(images.x), jnp.asarray(images.y))
        self.test = (jnp.asarray(images.x_test), jnp.asarray(images.y_test))
        self._law_of = functools.cache(
            functools.partial(lw.scheme_law, model, self.images[0][:2])
        )

    def draw(self, scheme: str, key: jax.Array) -> Any:
        """Returns parameters under a scheme, whose law is worked out once."""
        law = self._law_of(scheme)
        return law.place(law(key))

    def __call__(
        self, state: dict[str, Any], key: jax.Array, rate: float
    ) -> tuple[dict[str, Any], dict[str, float]]:
        """Returns the state after an epoch, and its metrics."""
        n = len(self.images[0])
        steps = n // self.batch
        order = jax.random.permutation(key, n)[: steps * self.batch]
        losses = []
        for chosen in order.reshape(steps, self.batch):
            state, loss = self.sgd.step(state, self.images, chosen, jnp.float32(rate))
            losses.append(loss)
        good = accuracy(self.sgd.model, state["variables"], *self.test)
        loss = np.mean(np.asarray(losses, np.float64))
        return state, {"loss": float(loss), "accuracy": float(good)}


def train_one(
    run: Run, config: ConfigDict, epoch: Epoch, folder: Path, tick: Callable[[], Any]
) -> None:
    """Trains one run to its end, from where it was left.

    After every epoch the line of metrics is written first and the checkpoint second: a
    kill in between leaves a line too many, which the next start cuts off. A loss that
    is not finite leaves weights that are not numbers, whose metrics never change: they
    are repeated, not computed again.

    Args:
        run: Which.
        config: The configuration.
        epoch: The compiled epoch.
        folder: The run's own.
        tick: Called after every epoch.
    """
    import orbax.checkpoint as ocp

    folder.mkdir(parents=True, exist_ok=True)
    key = jax.random.key(run.seed)
    start = epoch.sgd.start(epoch.draw(run.scheme, key))
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    with ocp.CheckpointManager(folder.resolve() / "state", options=options) as manager:
        done = manager.latest_step() or 0
        state = start
        if done:
            state = manager.restore(done, args=ocp.args.StandardRestore(start))
        lines = whole_lines(folder / "metrics.jsonl")[:done]
        replace_file(folder / "metrics.jsonl", "".join(lines))
        metrics = {k: json.loads(lines[-1])[k] for k in METRICS} if lines else {}
        for number in range(done, config.epochs):
            if np.isfinite(metrics.get("loss", 0.0)):
                batches = jax.random.fold_in(key, number + 1)
                state, metrics = epoch(state, batches, run.rate)
            row = {"epoch": number + 1, **metrics}
            append_line(folder / "metrics.jsonl", row)
            manager.save(number + 1, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            tick()
    replace_file(folder / "done", "")


def collect(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Returns the metrics of all runs so far: a row per run and epoch."""

    def rows() -> Iterator[dict[str, Any]]:
        for run in runs_of(config):
            for line in whole_lines(folder / "runs" / run.name / "metrics.jsonl"):
                yield {**dataclasses.asdict(run), **json.loads(line)}

    return pd.DataFrame(list(rows()))


def table_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the paper's table: best-epoch accuracies over seeds, at the best rate.

    The rate is the one of a scheme's best median. `p` is that of a two-sided rank test
    (Mann-Whitney) against the first scheme.
    """
    best = frame.groupby(["scheme", "rate", "seed"], sort=False)["accuracy"].max()
    medians = best.groupby(["scheme", "rate"], sort=False).median()
    rows, first = [], None
    for scheme in frame["scheme"].unique():
        rate = medians[scheme].idxmax()
        values = best[scheme, rate].to_numpy()
        first = values if first is None else first
        q1, median, q3 = np.quantile(values, [0.25, 0.5, 0.75])
        p = stats.mannwhitneyu(values, first).pvalue if values is not first else np.nan
        rows.append((scheme, rate, len(values), values.max(), q3, median, q1, p))
    names = ["scheme", "rate", "seeds", "max", "Q3", "median", "Q1", "p"]
    return pd.DataFrame(rows, columns=names)


def draw(frame: pd.DataFrame, table: pd.DataFrame, path: Path) -> None:
    """Draws the median test accuracy by epoch, at the rate of the table."""
    curves = {}
    for scheme, rate in zip(table["scheme"], table["rate"], strict=True):
        own = frame[(frame["scheme"] == scheme) & (frame["rate"] == rate)]
        curves[f"{scheme}, {rate:g}"] = own.groupby("epoch")["accuracy"].median()
    axes: Any = pd.DataFrame(curves).plot(figsize=(7, 4.2), grid=True)
    axes.set(xlabel="epoch", ylabel="test accuracy (median over seeds)", ylim=(0, 1))
    axes.figure.savefig(path, dpi=160, bbox_inches="tight")


def run(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Trains what is not finished yet and returns the table.

    Args:
        config: The configuration.
        folder: The work directory.
    """
    epoch = Epoch(build(config), load(config), config)
    todo = [
        r for r in runs_of(config) if not (folder / "runs" / r.name / "done").exists()
    ]
    with tqdm(total=len(todo) * config.epochs, unit="epoch", desc="training") as bar:
        for one in todo:
            bar.set_postfix_str(one.name)
            train_one(one, config, epoch, folder / "runs" / one.name, bar.update)
    frame = collect(config, folder)
    table = table_of(frame)
    frame.to_csv(folder / "runs.csv", index=False)
    table.to_csv(folder / "table.csv", index=False)
    print(table.to_string(index=False))
    draw(frame, table, folder / "accuracy.png")
    return table


if __name__ == "__main__":
    launch("train_classifier", check, run)
