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
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags
from rich.console import Console
from scipy import stats
from tqdm import tqdm

import layerwise as lw
from experiments.training import Data, digits, train_mode
from experiments.workdir import open_workdir
from layerwise.errors import InvalidArgumentError, LayerwiseError, message


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
        for seed in range(config.seeds)
        for rate in config.learning_rates
        for scheme in config.schemes
    ]


def load(config: ConfigDict) -> Data:
    """Returns the data of a configuration.

    Raises:
        InvalidArgumentError: If the data set is unknown.
    """
    if config.data == "digits":
        data = digits(build(config).input_shape[0])
        return data._replace(
            x=np.repeat(data.x, 3, axis=-1), x_test=np.repeat(data.x_test, 3, axis=-1)
        )
    raise InvalidArgumentError(
        message(
            f"data={config.data!r}.",
            "The data sets are: digits (scikit-learn's, no download).",
            "Pass --config.data=digits.",
        )
    )


def build(config: ConfigDict) -> nn.Module:
    """Returns the model of a configuration."""
    return lw.zoo.create(config.model, **config.model_args.to_dict())


def check(config: ConfigDict) -> None:
    """Raises what is wrong with the configuration, before any work is done."""
    for name in ("epochs", "batch", "seeds"):
        value = config[name]
        if not isinstance(value, int) or value < 1:
            raise InvalidArgumentError(
                message(
                    f"{name}={value!r}.",
                    "It is a count: a whole number, at least 1.",
                    f"Pass --config.{name}=10.",
                )
            )
    data, model = load(config), build(config)
    for scheme in config.schemes:
        lw.scheme_law(model, data.x[:2], scheme)


class Epoch:
    """One pass over the training data as one compiled program, and the test error.

    Args:
        model: The classifier.
        data: The images.
        config: Of the optimizer.
    """

    def __init__(self, model: nn.Module, data: Data, config: ConfigDict) -> None:
        self.model, self.batch = model, config.batch
        self.data = tuple(jnp.asarray(a) for a in data)
        self.rule = optax.chain(
            optax.add_decayed_weights(config.weight_decay),
            optax.sgd(1.0, config.momentum),
        )
        self.mode = train_mode(model)

    def start(self, variables: Any) -> dict[str, Any]:
        """Returns the state before the first epoch."""
        return {"variables": variables, "moments": self.rule.init(variables["params"])}

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, state: Any, key: jax.Array, rate: jax.Array) -> Any:
        """Returns the state after an epoch, and its metrics."""
        x, y, x_test, y_test = self.data
        steps = len(x) // self.batch
        order = jax.random.permutation(key, len(x))[: steps * self.batch]

        def step(state: Any, chosen: jax.Array) -> Any:
            params = state["variables"]["params"]
            rest = {k: v for k, v in state["variables"].items() if k != "params"}

            def loss_of(params: Any) -> Any:
                out, new = self.model.apply(
                    {"params": params, **rest},
                    x[chosen],
                    mutable=list(rest),
                    **self.mode,
                )
                losses = optax.softmax_cross_entropy_with_integer_labels(out, y[chosen])
                return losses.mean(), new

            (loss, new), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
            updates, moments = self.rule.update(grads, state["moments"], params)
            updates = jax.tree.map(lambda u: rate * u, updates)
            variables = {"params": optax.apply_updates(params, updates), **new}
            return {"variables": variables, "moments": moments}, loss

        state, losses = jax.lax.scan(step, state, order.reshape(steps, self.batch))
        out = jnp.asarray(self.model.apply(state["variables"], x_test))
        accuracy = (out.argmax(-1) == y_test).mean()
        return state, {"loss": losses.mean(), "accuracy": accuracy}


def train_one(
    run: Run, config: ConfigDict, epoch: Epoch, folder: Path, tick: Callable[[], Any]
) -> None:
    """Trains one run to its end, from where it was left.

    After every epoch the line of metrics is written first and the checkpoint second: a
    kill in between leaves a line too many, which the next start cuts off.

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
    example = epoch.data[0][:2]
    start = epoch.start(lw.initialize(epoch.model, example, key, run.scheme))
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    with ocp.CheckpointManager(folder.resolve() / "state", options=options) as manager:
        done = manager.latest_step() or 0
        state = start
        if done:
            state = manager.restore(done, args=ocp.args.StandardRestore(start))
        lines = _lines(folder / "metrics.jsonl")[:done]
        _replace(folder / "metrics.jsonl", "".join(lines))
        for number in range(done, config.epochs):
            batches = jax.random.fold_in(key, number + 1)
            state, metrics = epoch(state, batches, jnp.float32(run.rate))
            row = {"epoch": number + 1, **{k: float(v) for k, v in metrics.items()}}
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")
                file.flush()
                os.fsync(file.fileno())
            manager.save(number + 1, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
            tick()
    _replace(folder / "done", "")


def _lines(path: Path) -> list[str]:
    """Returns the whole lines of a file; a last one without its end is left out."""
    if not path.exists():
        return []
    return [y for y in path.read_text().splitlines(keepends=True) if y.endswith("\n")]


def _replace(path: Path, text: str) -> None:
    """Writes a file so that it is there as a whole, or as it was before."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def collect(config: ConfigDict, folder: Path) -> pd.DataFrame:
    """Returns the metrics of all runs so far: a row per run and epoch."""

    def rows() -> Iterator[dict[str, Any]]:
        for run in runs_of(config):
            for line in _lines(folder / "runs" / run.name / "metrics.jsonl"):
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
    draw(frame, table, folder / "accuracy.png")
    return table


def main(argv: list[str]) -> None:
    """Runs the configuration and prints the table."""
    del argv
    logging.set_verbosity(logging.WARNING)  # orbax tells of every step of a save
    console = Console()
    try:
        config = flags.FLAGS.config
        check(config)
        folder = open_workdir(flags.FLAGS.workdir, config)
    except LayerwiseError as error:
        console.print(str(error), style="red", highlight=False)
        sys.exit(2)
    console.print(run(config, folder).to_string(index=False))
    console.print(f"Wrote {folder}.")


if __name__ == "__main__":
    config_flags.DEFINE_config_file(
        "config", "experiments/configs/train_classifier.py:quick", "The configuration."
    )
    flags.DEFINE_string("workdir", "runs/train_classifier", "Where to write.")
    app.run(main)
