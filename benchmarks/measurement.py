"""What measuring every layer costs, against what people use today, in one run.

    python -m benchmarks.measurement --quick          # one network, 1.5 minutes
    python -m benchmarks.measurement --out=table.json # all five, about 30 minutes

Variants take turns, so that whatever else runs on the machine slows all of them. The
table gives medians of the rounds' ratios, with standard errors, and those of CPU time,
which a busy machine disturbs least. Each network has a process of its own: in the
memory that others leave, the small CNN's ratios are up to 1.8 times as large.
PyTorch is measured where it is installed.
"""

import json
import multiprocessing
import os
import platform
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import allocator, peak
from benchmarks.jax_variants import Bench
from benchmarks.models import CASES, MANY_DRAWS, QUICK
from benchmarks.timing import Times, interleaved
from layerwise.measurement import ensemble


_QUICK = flags.DEFINE_bool("quick", False, "One network, no memory: 1.5 minutes.")
_NETS = flags.DEFINE_list("nets", None, f"Networks, of {', '.join(CASES)}.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "The fewest rounds that are run.")
_SECONDS = flags.DEFINE_float("seconds", 45, "More rounds until this has passed.")
_OUT = flags.DEFINE_string("out", None, "File for the numbers, as JSON.")
_KEEP = flags.DEFINE_bool("keep_memory", True, "Keep freed memory mapped (allocator).")

# Ratio -> (its variant, what it is over, the target of each network).
RATIOS: dict[str, tuple[str, str, dict[str, float]]] = {
    "measuring / plain gradient": (
        "layerwise",
        "plain gradient",
        {
            "f34_224": 0.50,
            "f34_64": 0.08,
            "resnet50_64": 0.20,
            "transformer": 0.70,
            "cnn20": 0.50,
        },
    ),
    "all taps / one tap": (
        "layerwise, beside one tap",
        "layerwise, one tap",
        {
            "f34_224": 1.03,
            "f34_64": 1.03,
            "resnet50_64": 1.03,
            "transformer": 1.12,
            "cnn20": 1.08,
        },
    ),
    "rewrites on / off": ("layerwise", "layerwise, no rewrites", {}),
    "measuring / capture + perturb": ("layerwise", "capture + perturb", {}),
    "measuring / convolutions alone": (
        "layerwise",
        "convolutions alone",
        {"f34_224": 1 / 0.80, "f34_64": 1 / 0.70},
    ),
    "a draw / Python loop of gradients": (
        "layerwise, draws",
        "Python loop of gradients",
        {},
    ),
    "a draw / torch hooks": ("layerwise, draws", "torch hooks", {}),
    "a draw / torch hooks, no weight gradients": (
        "layerwise, draws",
        "torch hooks, no weight gradients",
        dict.fromkeys(CASES, 1 / 1.2),
    ),
    "a draw / the same, torch on 1 thread": (
        "layerwise, draws",
        "torch hooks, no weight gradients, 1 thread",
        {},
    ),
}


def measure_network(
    name: str, rounds: int, seconds: float, *, memory: bool
) -> dict[str, Any]:
    """Returns all numbers of one network.

    Args:
        name: The network.
        rounds: The fewest rounds that are run.
        seconds: Of each group of variants that take turns: more rounds until then.
        memory: Whether peak memory is measured.
    """
    case = CASES[name]()
    bench = Bench(case)
    single = bench.single()
    # The taps cost less than a round scatters by: those two alone, and so more often.
    pair = {
        "layerwise, beside one tap": single["layerwise"],
        "layerwise, one tap": single.pop("layerwise, one tap"),
    }
    singles = interleaved(single, rounds, seconds)
    singles |= interleaved(pair, rounds, seconds)
    variants: dict[str, Any] = dict(bench.many())
    try:
        from benchmarks.torch_variants import variants as torch_variants
    except ModuleNotFoundError:
        pass
    else:
        twins = torch_variants(name, np.asarray(case.inputs), ensemble.workers())
        variants |= {k: (call, 1) for k, call in twins.items()}
    times = singles | interleaved(variants, rounds, seconds, again=False)
    bench.compile_again(rounds)
    compiling = bench.compile_cpu
    result: dict[str, Any] = {
        "taps": len(bench.values),
        "seconds": {k: t.summary() for k, t in times.items()},
        "ratios": {k: r for k in RATIOS if (r := _ratio(times, k)) is not None},
        "compile_cpu_seconds": compiling,
        "compile_ratio": compiling["layerwise"] / compiling["plain gradient"],
        "compile_ratio_with_draws": compiling["layerwise with draws"]
        / (compiling["gradient"] + compiling["init"]),
        "xla_temporaries_mb": bench.temp_mb,
    }
    if memory:
        result["peak_mb"] = {
            variant: peak.megabytes(name, variant)
            for variant in ("layerwise", "plain gradient", "capture + perturb")
        }
    return result


def _ratio(times: dict[str, Times], name: str) -> dict[str, float] | None:
    variant, base, _ = RATIOS[name]
    if variant not in times or base not in times:
        return None
    return times[variant].over(times[base])


def render(results: dict[str, Any], console: Console) -> None:
    """Prints the table of ratios, and one of compile times and memory."""
    table = Table(
        title="Ratios: wall time, standard error (CPU time); the target in brackets"
    )
    table.add_column("time of")
    for name in results:
        table.add_column(name, justify="right")
    for ratio, (_, _, targets) in RATIOS.items():
        row = []
        for name, result in results.items():
            r = result["ratios"].get(ratio)
            target = f" \\[{targets[name]:.2f}]" if name in targets else ""
            row.append(
                "-"
                if r is None
                else f"{r['wall']:.3f} ± {r['wall_error']:.3f} ({r['cpu']:.3f}){target}"
            )
        table.add_row(ratio, *row)
    for title, key, target in (
        ("compiling / that of the gradient", "compile_ratio", " \\[1.50]"),
        ("compiling / that of gradient and init", "compile_ratio_with_draws", ""),
    ):
        table.add_row(title, *(f"{r[key]:.2f}{target}" for r in results.values()))
    console.print(table)
    for name, result in results.items():
        peaks = result.get("peak_mb")
        if peaks:
            text = ", ".join(f"{k} {v:.0f} MB" for k, v in peaks.items())
            console.print(f"{name}: peak memory of a process: {text}", markup=False)


def machine() -> dict[str, Any]:
    """Returns what the numbers were measured on."""
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": ensemble.workers(),
        "load_average": os.getloadavg(),
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "memory_kept": _KEEP.value,
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            lines = [line for line in file if line.startswith("model name")]
    except OSError:
        lines = []
    return lines[0].partition(":")[2].strip() if lines else platform.processor()


def _write(path: str, before: dict[str, Any], results: dict[str, Any]) -> None:
    after = {"load_average_after": os.getloadavg()}
    with open(path, "w") as file:
        json.dump({"machine": before | after, "networks": results}, file, indent=1)


def main(argv: list[str]) -> None:
    del argv
    if _KEEP.value:
        allocator.keep()
    console = Console(width=None if os.isatty(1) else 220)
    names = _NETS.value or (QUICK if _QUICK.value else list(CASES))
    before = machine()
    try:
        import torch

        console.print(f"PyTorch {torch.__version__}, {ensemble.workers()} threads")
    except ModuleNotFoundError:
        console.print("PyTorch is not installed: its rows stay empty.")
        console.print("To have them: pip install 'layerwise[bench]'", markup=False)
    results = {}
    seconds = 0.0 if _QUICK.value else _SECONDS.value
    spawn = multiprocessing.get_context("spawn")
    for name in names:
        console.print(f"{name} ...")
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            results[name] = pool.submit(
                measure_network, name, _ROUNDS.value, seconds, memory=not _QUICK.value
            ).result()
        if _OUT.value:
            _write(_OUT.value, before, results)
    render(results, console)
    if not _QUICK.value:
        (name,) = MANY_DRAWS
        few, many = (
            float(np.median([peak.megabytes(name, "draws", n) for _ in range(5)]))
            for n in (16, 1024)
        )
        results[name] = {"peak_mb": {"16 draws": few, "1024 draws": many}}
        console.print(
            f"{name}: peak memory, median of 5, 16 draws {few:.0f} MB, "
            f"1024 draws {many:.0f} MB: ratio {many / few:.3f}, at most 1.05 wanted"
        )
    if _OUT.value:
        _write(_OUT.value, before, results)
    console.print(
        f"{before['processor']}, {before['cores']} cores; load average before and "
        f"after: {before['load_average'][0]:.1f}, {os.getloadavg()[0]:.1f}"
    )


if __name__ == "__main__":
    app.run(main)
