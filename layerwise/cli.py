"""The command ``layerwise``: measure, judge and compare models from a terminal.

::

    layerwise report my_package.models:ResNet --input 8,224,224,3 --html report.html
    layerwise compare my_file.py:model --scheme lecun --scheme kaiming_fan_in
    layerwise demo

Exit status: 0 where the verdict is healthy, 1 where it is not, 2 where the command
could not be carried out.
"""

import argparse
import dataclasses
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
from absl import app, logging
from absl.flags import argparse_flags

import layerwise as lw
from layerwise import command_line as setup


HEALTHY, UNHEALTHY, FAILED = 0, 1, 2
METHODS = ("kernel", "sitewise", "recursion")
COMPARED = ("lecun", "glorot", "kaiming_fan_in", "asv_forward", "kernel_forward")

_FILES = {
    "html": "the interactive page",
    "json": "table and verdict as JSON",
    "markdown": "table and verdict as Markdown",
    "csv": "the tidy table",
    "figure": "the curves (.png, .pdf, .svg)",
}
_MODEL = "package.module:Name or file.py:Name, a Flax class, instance or factory"
_INPUT = (
    "[dtype:]shape[:vocab=N], batch first: 8,224,224,3 is standard normal, "
    "int:8,128:vocab=1000 tokens; or array.npy; once for each input"
)


class _Parser(argparse_flags.ArgumentParser):
    """A parser whose errors end with a line to type."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(FAILED, f"{self.prog}: {message}\nType: {self.prog} --help\n")


_EXAMPLES = """\
examples:
  layerwise report my_package.models:ResNet --input 8,224,224,3 --html report.html
  layerwise report my_file.py:Tagger --args '{"width": 128}' --input int:8,64:vocab=1000
  layerwise compare zoo:f34 --args '{"width": 8}' --figure schemes.png
  layerwise demo

layerwise COMMAND --help says what a command takes. Exit status: 0 where the verdict is
healthy, 1 where it is not, 2 where the command could not be carried out.
"""


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line."""
    top = _Parser(
        prog="layerwise",
        description="Per-layer variance of JAX/Flax networks at initialization.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"layerwise {lw.__version__}"
    top.add_argument("--version", action="version", version=version)
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
    report.add_argument(
        "--scheme",
        metavar="NAME",
        help=f"draw networks under it, not by the model's own init: {_schemes()}",
    )
    report.add_argument(
        "--predict",
        choices=[*METHODS, "none"],
        default=METHODS[0],
        help="what theory says beside the measurement (default: %(default)s)",
    )
    report.add_argument("--select", metavar="GLOB", help="layers to write, by path")
    report.add_argument("--quiet", action="store_true", help="print the verdict only")
    for kind, what in _FILES.items():
        report.add_argument(f"--{kind}", metavar="FILE", help=f"write {what} here")

    compare = command("compare", _compare, "Compares schemes on one model.")
    _takes_model(compare)
    _takes_draws(compare)
    compare.add_argument(
        "--scheme",
        action="append",
        metavar="NAME",
        help=f"once for each; default {', '.join(COMPARED)}",
    )
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
    sub.add_argument(
        "--args",
        metavar="JSON",
        help="arguments of the class or factory: '{\"width\": 128}' or '[128]'",
    )
    sub.add_argument(
        "--kwargs", metavar="JSON", help="arguments of the call: '{\"train\": false}'"
    )
    sub.add_argument("--seed", type=int, default=0, help="of networks and inputs")


def _takes_draws(sub: Any, draws: int = 16) -> None:
    sub.add_argument(
        "--draws",
        type=_count,
        default=draws,
        metavar="N",
        help="random networks (default: %(default)s)",
    )
    sub.add_argument(
        "--tolerance",
        type=_factor,
        default=100.0,
        metavar="X",
        help="factor by which the signal may change (default: %(default)g)",
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text} is not a number of networks")
    return int(text)


def _factor(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 1:
        raise argparse.ArgumentTypeError(f"{text} is not a factor above 1")
    return value


def _schemes() -> str:
    return ", ".join(lw.scheme_names())


def _prepared(options: Any) -> dict[str, Any]:
    """Returns the model and what it is to be called with."""
    said = f"layerwise {options.command} {options.model}"
    model = setup.load_model(options.model, options.args, options.seed, said)
    inputs = setup.make_inputs(options.input, options.seed)
    kwargs = setup.parse_json(options.kwargs, "--kwargs")
    setup.check_callable_on(model, inputs, kwargs, _typed(options))
    return {"model": model, "inputs": inputs, "kwargs": kwargs}


def _typed(options: Any) -> str:
    """Returns what was typed, up to the inputs."""
    given = f" --args '{options.args}'" if options.args else ""
    return f"layerwise {options.command} {options.model}{given}"


def _check(options: Any) -> None:
    """Raises `UsageError` before an hour of measuring, not after it."""
    schemes = getattr(options, "scheme", None) or []
    for scheme in [schemes] if isinstance(schemes, str) else schemes:
        setup.check_scheme(scheme, lw.scheme_names(), _typed(options))
    for kind in _FILES:
        if path := getattr(options, kind, None):
            setup.check_path(path, f"--{kind}", figure=kind == "figure")
    if getattr(options, "select", None) and not any(
        getattr(options, kind) for kind in ("html", "markdown", "csv")
    ):
        raise setup.UsageError(
            f"--select {options.select} without a file to write.",
            "It says which layers --html, --markdown and --csv hold.",
            f"{_typed(options)} --select '{options.select}' --html report.html",
        )


def _report(options: Any) -> int:
    predicts = options.predict != "none"
    with _progress("measuring", "predicting" if predicts else "") as progress:
        report = lw.propagate_variance(
            **_prepared(options),
            draws=options.draws,
            key=jax.random.key(options.seed),
            scheme=options.scheme,
            method=options.predict if predicts else None,
            statistics=("zeros", "cosine_examples"),
            progress=progress,
        )
    report = dataclasses.replace(report, tolerance=options.tolerance)
    _check_tokens(report, options)
    found = report.diagnose()
    _print(found if options.quiet else report)
    _write(report, options)
    return HEALTHY if found.healthy else UNHEALTHY


def _check_tokens(report: lw.VarianceReport, options: Any) -> None:
    """Raises `UsageError` where tokens were drawn that the model has no row for."""
    for finding in report.diagnose():
        if finding.kind == "lookup":
            flags = setup.fewer_tokens(
                options.input, int(finding.evidence["rows"].value)
            )
            raise setup.UsageError(
                f"{finding.path}: {finding.reason}",
                "What follows is NaN, whatever the network is.",
                f"{_typed(options)} {flags}",
            )


def _write(report: lw.VarianceReport, options: Any) -> None:
    select = options.select
    if select and report.table(select).empty:
        paths = ", ".join(report.measurement.layer_paths[:6])
        raise setup.UsageError(
            f"--select {select} matches the path of no layer.",
            f"The paths are {paths} ...",
            f"--select '*{report.measurement.layer_paths[0]}'",
        )
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
    for kind in _FILES:
        if path := getattr(options, kind):
            _print(f"{kind}: {path}")


def _save(panels: Any, path: str) -> None:
    panels.figure.savefig(path, dpi=150)


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
                _check_tokens(reports[scheme], options)
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
    _print(lw.describe(**_prepared(options)))
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
                model,
                draws=options.draws,
                scheme=scheme,
                method="kernel" if options.html else None,
                progress=progress,
            )
        _print(f"\nF34 (34 layers, width / 8, 64 px) under {scheme}:")
        _print(lw.diagnose(reports[scheme], tolerance=options.tolerance))
    if options.html:
        reports["kaiming_fan_in"].to_html(options.html)
        _print(f"html: {options.html}")
    return HEALTHY


@contextmanager
def _progress(label: str, then: str = "") -> Iterator[Callable[[int, int], None]]:
    """Yields a callback that draws a bar on a terminal, and nothing elsewhere.

    Args:
        label: What is being done.
        then: What is done when that is complete, of unknown length; "" for nothing.
    """
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
    quiet = not console.is_terminal  # a bar that cannot move would print a blank line
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if then and done == total:
                bar.update(task, description=then, total=None)

        yield update


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
        _check(options)
        return options.run(options)
    except (Exception, KeyboardInterrupt) as error:
        if options.debug:
            traceback.print_exc()
        print(f"layerwise {options.command}: {_said(error, options)}", file=sys.stderr)
    return FAILED


def _said(error: BaseException, options: Any) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted before there was anything to show."
    if isinstance(error, lw.errors.InputError):
        flags = "--input [DTYPE:]SHAPE[:vocab=N] --kwargs JSON"
        return f"{error}\nType: {_typed(options)} {flags}"
    if isinstance(error, OSError) and error.filename:
        folder = os.path.dirname(os.path.abspath(error.filename))
        return f"{error}\nType: ls -ld {folder}   # is it there, and yours?"
    if isinstance(error, lw.errors.LayerwiseError | OSError):
        return str(error)
    return (
        f"{type(error).__name__}: {error}\n"
        "This was not foreseen. Add --debug for the traceback."
    )


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
