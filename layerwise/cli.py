"""The command ``layerwise``: measure, judge and compare models from a terminal.

::

    layerwise report my_package.models:ResNet --input 8,224,224,3 --html report.html
    layerwise compare my_file.py:model --scheme lecun --scheme kaiming_fan_in
    layerwise demo

Exit status: 0 where the verdict is healthy, 1 where it is not, 2 where the command
could not be carried out.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from absl import app, logging
from absl.flags import argparse_flags

import layerwise as lw
from layerwise import command_line as setup


HEALTHY, UNHEALTHY, FAILED = 0, 1, 2
METHODS = ("kernel", "sitewise", "recursion")
COMPARED = ("lecun", "glorot", "kaiming_fan_in", "asv_forward", "kernel_forward")

_MODEL = "package.module:Name or file.py:Name, a Flax class, instance or factory"
_INPUT = (
    "[dtype:]shape[:vocab=N], batch first: 8,224,224,3 is standard normal, "
    "int:8,128:vocab=1000 tokens; or array.npy; once for each input"
)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    top = argparse_flags.ArgumentParser(
        prog="layerwise",
        description="Per-layer variance of JAX/Flax networks at initialization.",
        epilog="layerwise COMMAND --help says what a command takes.",
    )
    top.add_argument("--version", action="version", version=lw.__version__)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[Any], int], about: str) -> Any:
        # absl's flags belong to the program; its subcommands have plain parsers.
        sub = commands.add_parser(name, help=about, description=about)
        sub.set_defaults(run=run)
        sub.add_argument("--debug", action="store_true", help="show tracebacks")
        return sub

    report = command("report", _report, "Measures a model and says whether it is well.")
    _takes_model(report)
    _takes_draws(report)
    report.add_argument("--scheme", help=f"draw under it: {_schemes()}")
    report.add_argument("--tolerance", type=float, default=100.0, metavar="X")
    report.add_argument(
        "--predict",
        choices=[*METHODS, "none"],
        default=METHODS[0],
        help="what theory says beside the measurement (default: %(default)s)",
    )
    report.add_argument("--select", metavar="GLOB", help="layers to write, by path")
    report.add_argument("--quiet", action="store_true", help="print the verdict only")
    for kind in ("html", "json", "markdown", "csv", "figure"):
        report.add_argument(f"--{kind}", metavar="FILE", help=f"write {kind} here")

    compare = command("compare", _compare, "Compares schemes on one model.")
    _takes_model(compare)
    _takes_draws(compare)
    compare.add_argument(
        "--scheme",
        action="append",
        help=f"once for each; default {', '.join(COMPARED)}",
    )
    compare.add_argument("--tolerance", type=float, default=100.0, metavar="X")
    compare.add_argument("--figure", metavar="FILE", help="write the curves here")

    describe = command("describe", _describe, "Says what is found in a model.")
    _takes_model(describe)

    coverage = command("coverage", _coverage, "Says what of a model is looked into.")
    _takes_model(coverage)

    demo = command("demo", _demo, "A 34-layer network under three schemes, in seconds.")
    demo.add_argument("--html", metavar="FILE", help="write the report here")
    _takes_draws(demo, draws=8)
    return top


def _takes_model(sub: Any) -> None:
    sub.add_argument("model", help=_MODEL)
    sub.add_argument("--input", action="append", metavar="SPEC", help=_INPUT)
    sub.add_argument("--args", metavar="JSON", help="arguments of the class or factory")
    sub.add_argument("--kwargs", metavar="JSON", help='of the call: {"train": false}')
    sub.add_argument("--seed", type=int, default=0)


def _takes_draws(sub: Any, draws: int = 16) -> None:
    sub.add_argument("--draws", type=int, default=draws, help="random networks")


def _schemes() -> str:
    return ", ".join(lw.scheme_names())


def _prepared(options: Any) -> dict[str, Any]:
    """Returns the model and what it is to be called with."""
    said = f"layerwise {options.command} {options.model}"
    model = setup.load_model(options.model, options.args, options.seed, said)
    inputs = setup.make_inputs(options.input, options.seed)
    kwargs = setup.parse_json(options.kwargs, "--kwargs")
    setup.check_callable_on(model, inputs, said)
    return {"model": model, "inputs": inputs, "kwargs": kwargs}


def _report(options: Any) -> int:
    with _progress("measuring") as progress:
        report = lw.propagate_variance(
            **_prepared(options),
            draws=options.draws,
            key=jax.random.key(options.seed),
            scheme=options.scheme,
            method=None if options.predict == "none" else options.predict,
            statistics=("zeros", "cosine_examples"),
            progress=progress,
        )
    found = lw.diagnose(report, tolerance=options.tolerance)
    _print(found if options.quiet else report)
    _write(report, options)
    return HEALTHY if found.healthy else UNHEALTHY


def _write(report: lw.VarianceReport, options: Any) -> None:
    select = options.select
    texts = {
        "json": report.to_json,
        "markdown": lambda: report.to_markdown(select),
        "csv": lambda: report.to_frame(select).to_csv(index=False),
    }
    for kind, text in texts.items():
        if path := getattr(options, kind):
            with open(path, "w", encoding="utf-8") as file:
                file.write(text())
    if options.html:
        report.to_html(options.html, select=select)
    if options.figure:
        _save(report.plot(), options.figure)
    for kind in (*texts, "html", "figure"):
        if path := getattr(options, kind):
            _print(f"{kind}: {path}")


def _save(axes: Any, path: str) -> None:
    axes[0].figure.savefig(path, dpi=150)


def _compare(options: Any) -> int:
    from rich.table import Table

    ready = _prepared(options)
    reports: dict[str, lw.VarianceReport] = {}
    refused: dict[str, str] = {}
    for scheme in options.scheme or COMPARED:
        with _progress(scheme) as progress:
            try:
                reports[scheme] = lw.propagate_variance(
                    **ready,
                    draws=options.draws,
                    key=jax.random.key(options.seed),
                    scheme=scheme,
                    method="kernel" if options.figure else None,
                    progress=progress,
                    title=scheme,
                )
            except lw.errors.UnsupportedModelError as error:
                refused[scheme] = str(error).splitlines()[0]
    table = Table("scheme", "verdict", "q of the last layer", "r at layer 1", "worst")
    verdicts = []
    for scheme, report in reports.items():
        found = lw.diagnose(report, tolerance=options.tolerance)
        verdicts.append(found.healthy)
        q, r = (report.summary(d).mean for d in ("forward", "backward"))
        worst = f"{found[0].kind} {found[0].direction}" if len(found) else ""
        table.add_row(scheme, found.verdict, f"{q[-1]:.3g}", f"{r[1]:.3g}", worst)
    for scheme, reason in refused.items():
        table.add_row(scheme, "not applicable", "", "", reason)
    _print(table)
    if options.figure and reports:
        _save(lw.plot_comparison(reports), options.figure)
        _print(f"figure: {options.figure}")
    return HEALTHY if any(verdicts) else UNHEALTHY


def _describe(options: Any) -> int:
    describe = getattr(lw, "describe", None)
    if describe is None:
        raise setup.UsageError(
            "This version of layerwise has no lw.describe.",
            "The command only prints what that function returns.",
            f"layerwise report {options.model}",
        )
    ready = _prepared(options)
    _print(describe(ready["model"], ready["inputs"]))
    return HEALTHY


def _coverage(options: Any) -> int:
    ready = _prepared(options)
    m = lw.measure(**ready, draws=1)  # one shows what any number of draws would
    _print(f"measured: {len(m.layer_paths)} layers, {len(m.sites)} places")
    for where in m.untapped:
        _print(f"  not looked into: {where}")
    p = lw.predict(ready["model"], None, ready["inputs"], kwargs=ready["kwargs"])
    _print(f"predicted: {p.coverage}")
    for where, reason in p.sampled.items():
        _print(f"  sampled: {where}: {reason}")
    return HEALTHY


def _demo(options: Any) -> int:
    model = lw.zoo.f34(width=8, image_size=64)
    reports = {}
    for scheme in ("glorot", "kaiming_fan_in", "asv_forward"):
        with _progress(scheme) as progress:
            reports[scheme] = lw.propagate_variance(
                model, draws=options.draws, scheme=scheme, progress=progress
            )
        _print(f"\nF34 (34 layers, width / 8, 64 px) under {scheme}:")
        _print(lw.diagnose(reports[scheme]))
    if options.html:
        reports["kaiming_fan_in"].to_html(options.html)
        _print(f"html: {options.html}")
    return HEALTHY


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a callback that draws a bar on a terminal, and nothing elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(),
    )  # fmt: skip
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print(what: Any) -> None:
    from rich.console import Console

    Console(soft_wrap=isinstance(what, str)).print(what, markup=False, highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status.

    Args:
        arguments: Without the program's name; those of the process if None.
    """
    return _run(parser().parse_args(arguments))


def _run(options: argparse.Namespace) -> int:
    try:
        return options.run(options)
    except (lw.errors.LayerwiseError, setup.UsageError) as error:
        if options.debug:
            traceback.print_exc()
        print(f"layerwise {options.command}: {error}", file=sys.stderr)
    except OSError as error:
        print(f"layerwise {options.command}: {error}", file=sys.stderr)
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        print(
            f"layerwise {options.command}: {type(error).__name__}: {error}\n"
            "This was not foreseen. Add --debug for the traceback.",
            file=sys.stderr,
        )
    return FAILED


def run() -> None:
    """Entry point of the console script."""
    sys.path.insert(0, os.getcwd())  # where a user's own modules are
    logging.set_verbosity(logging.WARNING)  # JAX tells of the backends it looked for
    app.run(
        lambda options: _run(options),
        flags_parser=lambda argv: parser().parse_args(argv[1:]),
    )


if __name__ == "__main__":
    run()
