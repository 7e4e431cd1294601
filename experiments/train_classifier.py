r"""Trains a classifier under schemes, learning rates and seeds: the paper's Table 4.

Every run has a folder of its own with one line of metrics per epoch and a checkpoint.
A run that was killed continues where its last whole epoch ended, with the same numbers;
a finished one is skipped. With ``--config.layers_every=100`` the layers are measured at
every hundredth step, too. Writes into the work directory: ``runs.csv`` (a row per run
and epoch), ``rates.csv`` and ``table.csv`` (accuracies at every rate, and at the best),
``ranks.csv`` (rank tests), ``accuracy.png``; and of the layers ``layers.csv``,
``layers.png`` and ``overhead.json``.

    python -m experiments.train_classifier \
        --config=experiments/configs/train_classifier.py:quick --workdir=runs/digits
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments import accuracy_table, data, layer_watch
from experiments.launch import (
    check_below,
    check_choices,
    check_counts,
    check_positive,
    launch,
)
from experiments.models import build, check_schemes, law_of
from experiments.training import Data, Sgd
from experiments.workdir import append_line, replace_file, whole_lines
from layerwise.errors import InvalidArgumentError, message


METRICS = ("loss", "accuracy")
COMPUTE = ("float32", "bfloat16")


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


Group = tuple[Run, ...]
"""Runs of one scheme and rate that train side by side, in one program."""


def groups_of(config: ConfigDict) -> list[Group]:
    """Returns the runs of a configuration, `stacked` seeds in each group."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    return [
        tuple(Run(scheme, rate, seed) for seed in seeds[i : i + config.stacked])
        for i in range(0, len(seeds), config.stacked)
        for rate in config.learning_rates
        for scheme in config.schemes
    ]


def runs_of(config: ConfigDict) -> list[Run]:
    """Returns the runs of a configuration, schemes side by side for every seed."""
    return [run for group in groups_of(config) for run in group]


def load(config: ConfigDict) -> Data:
    """Returns the data of a configuration, in the size of its model."""
    return data.of_name(config.data, config.tfds, build(config).input_shape[0])


def check(config: ConfigDict) -> None:
    """Raises what is wrong with the configuration, before any work is done."""
    check_counts(config, "epochs", "batch", "seeds", "stacked")
    check_counts(config, "first_seed", "layers_every", least=0)
    check_positive(config, "learning_rates")
    check_below(config, 1.0, "momentum", "weight_decay")
    check_choices("compute", [config.compute], COMPUTE)
    model = build(config)
    images = load(config)
    check_schemes(model, images.train.take(slice(2))[0], config.schemes)
    _check_fit(config, model, images)


def _check_fit(config: ConfigDict, model: nn.Module, images: Data) -> None:
    if config.batch > len(images.x):
        raise InvalidArgumentError(
            message(
                f"batch={config.batch}, and there are {len(images.x)} images.",
                "An epoch would have no step.",
                "Pass --config.batch=64.",
            )
        )
    x = jax.eval_shape(lambda: images.train.take(slice(2))[0])
    init = functools.partial(model.init_with_output, jax.random.key(0))
    outputs = jax.eval_shape(init, x)[0].shape[-1]
    classes = 1 + int(max(images.y.max(), images.y_test.max()))
    if outputs < classes:
        raise InvalidArgumentError(
            message(
                f"The model has {outputs} outputs, and the data {classes} classes.",
                "The loss needs an output for every class.",
                f"Pass --config.model_args.num_classes={classes}.",
            )
        )


class Epoch:
    """One pass over the training data, and the test error after it.

    The states of a group are stacked, and every step is one program for all of them.

    Args:
        model: The classifier.
        images: The data.
        config: Of the optimizer.

    Attributes:
        times: Seconds of every epoch so far, and those that snapshots of layers took.
    """

    def __init__(self, model: nn.Module, images: Data, config: ConfigDict) -> None:
        self.sgd = Sgd(model, config.momentum, config.weight_decay, config.compute)
        self.batch = config.batch
        self.train, self.test = images.train, images.test
        self.steps = len(images.x) // config.batch
        self.times: list[tuple[float, float]] = []
        self._watch = None
        if config.layers_every:
            every = config.layers_every
            self._watch = layer_watch.LayerWatch(self.sgd, self.train, every)
        two = self.train.take(slice(2))[0]
        self._law_of = functools.cache(functools.partial(law_of, model, two))

    def start(self, group: Group) -> dict[str, Any]:
        """Returns the state before the first step; a law is worked out once."""
        states = []
        for run in group:
            law = self._law_of(run.scheme)
            parameters = law.place(law(jax.random.key(run.seed)))
            states.append(self.sgd.start(parameters))
        return _stack(states)

    def __call__(
        self, state: dict[str, Any], group: Group, number: int, folder: Path
    ) -> tuple[dict[str, Any], list[dict[str, float]]]:
        """Returns the state after an epoch, and the metrics of every run.

        Args:
            state: From `start` or the last epoch.
            group: The runs.
            number: Of the epoch, from 1.
            folder: Where the runs have their folders.
        """
        began, looked = time.perf_counter(), self._watch.seconds if self._watch else 0.0
        many, losses = len(group) > 1, []
        step = _stacked_step(self.sgd) if many else self.sgd.step
        rate = jnp.float32(group[0].rate)
        for i, chosen in enumerate(self._batches(group, number)):
            done = (number - 1) * self.steps + i
            if self._watch is not None and done % self._watch.every == 0:
                folders = [folder / run.name for run in group]
                states = _unstack(state, len(group))
                self._watch(done, states, _unstack(chosen, len(group)), folders)
            state, loss = step(state, self.train, chosen, rate)
            losses.append(loss)
        good = _stacked_accuracy(self.sgd) if many else self.sgd.accuracy
        accuracies = np.atleast_1d(good(state["variables"], self.test))
        by_run = np.asarray(losses, np.float64).reshape(self.steps, -1).T.copy()
        looked = self._watch.seconds - looked if self._watch else 0.0
        self.times.append((time.perf_counter() - began, looked))
        return state, [
            {"loss": float(np.mean(own)), "accuracy": float(accuracy)}
            for own, accuracy in zip(by_run, accuracies, strict=True)
        ]

    def _batches(self, group: Group, number: int) -> Iterator[jax.Array]:
        n = len(self.train.x)
        orders = []
        for run in group:
            key = jax.random.fold_in(jax.random.key(run.seed), number)
            order = jax.random.permutation(key, n)[: self.steps * self.batch]
            orders.append(order.reshape(self.steps, self.batch))
        order = _stack(orders)
        yield from order if len(group) == 1 else jnp.swapaxes(order, 0, 1)


@functools.cache
def _stacked_step(sgd: Sgd) -> Callable[..., Any]:
    return jax.jit(jax.vmap(sgd.step, in_axes=(0, None, 0, None)))


@functools.cache
def _stacked_accuracy(sgd: Sgd) -> Callable[..., Any]:
    return jax.jit(jax.vmap(sgd.accuracy, in_axes=(0, None)))


def _stack(trees: Sequence[Any]) -> Any:
    """Returns trees as one with an axis in front; a single one as it is."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unstack(tree: Any, count: int) -> list[Any]:
    if count == 1:
        return [tree]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(count)]


def train_group(
    group: Group,
    config: ConfigDict,
    epoch: Epoch,
    folder: Path,
    tick: Callable[[], Any],
) -> None:
    """Trains some runs to their end, from where they were left.

    After every epoch the lines of metrics are written first and the checkpoint second:
    a kill in between leaves lines too many, which the next start cuts off. A loss that
    is not finite leaves weights that are not numbers, whose metrics never change: they
    are repeated, not computed again.

    Args:
        group: Which.
        config: The configuration.
        epoch: The compiled epoch.
        folder: Where the runs have their folders; the first one's has the checkpoint.
        tick: Called after every epoch.
    """
    import orbax.checkpoint as ocp

    own = [folder / run.name for run in group]
    for one in own:
        one.mkdir(parents=True, exist_ok=True)
    start = epoch.start(group)
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    with ocp.CheckpointManager(own[0].resolve() / "state", options=options) as manager:
        done = manager.latest_step() or 0
        state = start
        if done:
            state = manager.restore(done, args=ocp.args.StandardRestore(start))
        rows = [_cut(one, done, epoch.steps) for one in own]
        for number in range(done, config.epochs):
            if any(np.isfinite(row.get("loss", 0.0)) for row in rows):
                state, new = epoch(state, group, number + 1, folder)
                rows = [
                    m if np.isfinite(row.get("loss", 0.0)) else row
                    for row, m in zip(rows, new, strict=True)
                ]
            for one, row in zip(own, rows, strict=True):
                append_line(one / "metrics.jsonl", {"epoch": number + 1, **row})
            manager.save(number + 1, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            tick()
    for one in own:
        replace_file(one / "done", "")


def _cut(folder: Path, done: int, steps: int) -> dict[str, float]:
    """Cuts off what was written after the checkpoint; returns the last metrics."""
    lines = whole_lines(folder / "metrics.jsonl")[:done]
    replace_file(folder / "metrics.jsonl", "".join(lines))
    layer_watch.cut(folder, done * steps)
    return {k: json.loads(lines[-1])[k] for k in METRICS} if lines else {}


def collect(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Returns the metrics of all runs so far: a row per run and epoch."""

    def rows() -> Iterator[dict[str, Any]]:
        for run in runs_of(config):
            for line in whole_lines(folder / "runs" / run.name / "metrics.jsonl"):
                yield {**dataclasses.asdict(run), **json.loads(line)}

    return pd.DataFrame(list(rows()))


def collect_layers(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Returns the snapshots of all runs so far: a row per place and step."""
    return pd.DataFrame(
        {**dataclasses.asdict(run), "run": run.name, **row}
        for run in runs_of(config)
        for row in layer_watch.snapshots(folder / "runs" / run.name)
    )


def analyze(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Turns a work directory into its tables and figures; returns the paper's table.

    Args:
        config: The configuration of the runs in it.
        folder: The work directory; runs in it may be unfinished.
    """
    table = accuracy_table.write(collect(config, folder), folder)
    layers = collect_layers(config, folder)
    if len(layers):
        layers.to_csv(folder / "layers.csv", index=False)
        rates = zip(table["scheme"], table["rate"], strict=True)
        shown = [Run(*found, config.first_seed).name for found in rates]
        chosen = layers[layers["run"].isin(shown)]
        layer_watch.draw(chosen, folder / "layers.png")
    return table


def run(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Trains what is not finished yet and returns the table.

    Args:
        config: The configuration.
        folder: The work directory.
    """
    runs, epoch = folder / "runs", Epoch(build(config), load(config), config)
    todo = [
        group
        for group in groups_of(config)
        if not all((runs / one.name / "done").exists() for one in group)
    ]
    with tqdm(total=len(todo) * config.epochs, unit="epoch", desc="training") as bar:
        for group in todo:
            bar.set_postfix_str(group[0].name)
            train_group(group, config, epoch, runs, bar.update)
    table = analyze(config, folder)
    if config.layers_every and len(epoch.times) > 1:
        _report_overhead(config, epoch, folder)
    return table


def _report_overhead(config: ConfigDict, epoch: Epoch, folder: Path) -> None:
    ratio, every = layer_watch.ratio(epoch.times), config.layers_every
    found = {"layers_every": every, "epochs": len(epoch.times), "time_ratio": ratio}
    replace_file(folder / "overhead.json", json.dumps(found) + "\n")
    print(f"\nSnapshots of the layers every {every} steps: {ratio:.3f} times the time.")


if __name__ == "__main__":
    launch("train_classifier", check, run)
