"""Accuracies of many runs as tables: by scheme and rate, at the best rate, by rank."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from layerwise.report import regions_plot
from layerwise.report.style import PALETTE


QUARTILES = {"max": 1.0, "Q3": 0.75, "median": 0.5, "Q1": 0.25}


def rates_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns accuracies over seeds of every scheme at every rate.

    Args:
        frame: Columns scheme, rate, seed, epoch, accuracy: a row per run and epoch.

    Returns:
        Of each run's best epoch ``max``, ``Q3``, ``median`` and ``Q1``, of its last
        epoch the same behind the word "last".
    """
    runs = frame.groupby(["scheme", "rate", "seed"], sort=False)["accuracy"]
    rows = []
    ends = pd.DataFrame({"": runs.max(), "last ": runs.last()})
    for (scheme, rate), own in ends.groupby(["scheme", "rate"], sort=False):
        row: dict[str, Any] = {"scheme": scheme, "rate": rate, "seeds": len(own)}
        for prefix in ends:
            values = own[prefix].to_numpy()
            row |= {
                f"{prefix}{q}": np.quantile(values, p) for q, p in QUARTILES.items()
            }
        rows.append(row)
    return pd.DataFrame(rows)


def table_of(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the paper's table: `rates_of` at each scheme's best median."""
    rates = rates_of(frame)
    best = rates.groupby("scheme", sort=False)["median"].idxmax()
    return rates.loc[best].reset_index(drop=True)


def rank_tests(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns p of a two-sided rank test (Mann-Whitney) for every pair of schemes.

    It compares best-epoch accuracies over seeds, each scheme at its rate in `table_of`.
    """
    table, samples = table_of(frame), {}
    for scheme, rate in zip(table["scheme"], table["rate"], strict=True):
        own = frame[(frame["scheme"] == scheme) & (frame["rate"] == rate)]
        samples[scheme] = own.groupby("seed")["accuracy"].max().to_numpy()
    p = pd.DataFrame(np.nan, index=list(samples), columns=list(samples))
    for a, b in itertools.permutations(samples, 2):
        p.loc[a, b] = stats.mannwhitneyu(samples[a], samples[b]).pvalue
    return p.rename_axis(index="scheme")


def draw(frame: pd.DataFrame, table: pd.DataFrame, path: Path) -> None:
    """Draws the median test accuracy by epoch, at the rate of the table."""
    curves = {}
    for scheme, rate in zip(table["scheme"], table["rate"], strict=True):
        own = frame[(frame["scheme"] == scheme) & (frame["rate"] == rate)]
        curves[f"{scheme}, {rate:g}"] = own.groupby("epoch")["accuracy"].median()
    (ax,) = regions_plot.new_axes(1, width=7.0, height=4.2)
    for i, (label, curve) in enumerate(curves.items()):
        style = "-" if i < len(PALETTE) else "--"
        color = PALETTE[i % len(PALETTE)]
        ax.plot(curve.index, curve.to_numpy(), style, color=color, label=label)
    ax.set(xlabel="epoch", ylabel="test accuracy (median over seeds)", ylim=(0, 1))
    ax.locator_params(axis="x", integer=True)
    ax.grid(alpha=0.25)
    ax.legend(fontsize=8.5)
    regions_plot.save(ax, path)


def write(frame: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Writes and prints the tables of all runs so far, and returns the paper's."""
    rates, table, ranks = rates_of(frame), table_of(frame), rank_tests(frame)
    frame.to_csv(folder / "runs.csv", index=False)
    rates.to_csv(folder / "rates.csv", index=False)
    table.to_csv(folder / "table.csv", index=False)
    ranks.to_csv(folder / "ranks.csv")
    shown = {"index": False, "float_format": lambda x: f"{x:.4g}"}
    print("Test accuracy over seeds, of the best epoch and of the last\n")
    print(rates.to_string(**shown))
    print("\nAt the rate of each scheme's best median\n")
    print(table.to_string(**shown))
    print("\nTwo-sided rank tests at these rates: p\n")
    print(ranks.to_string(float_format=lambda x: f"{x:.2g}", na_rep="-"))
    draw(frame, table, folder / "accuracy.png")
    return table
