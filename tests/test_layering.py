"""The packages import each other in one direction only.

The rules are the data below. `violations` reads every file's absolute imports without
importing anything, and holds them against the rules. The last tests run it on trees
with one thing wrong, to prove that it can fail.
"""

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
SCANNED = ("layerwise", "experiments", "benchmarks")
MAX_LINES = 500

PUBLIC = (
    "layerwise"  # the package itself: `import layerwise`, `from layerwise import f`
)
BASE = {"_jax", "errors", "types"}
ENGINES = BASE | {"moments", "tracing"}
LIBRARY = ENGINES | {
    "random",
    "theory",
    "measurement",
    "initializers",
    "initializers.automatic",
    "initializers.initialize",
    "nn",
    "zoo",
    "expressivity",
    "report",
}

# The parts of the repository, and which other parts each may import. A file belongs to
# the part with the longest matching name, so `initializers.automatic` stands apart from
# the rest of `initializers`: it may use theory, and nothing below may use it.
MAY_IMPORT: dict[str, set[str]] = {
    "_jax": BASE,
    "errors": BASE,
    "types": BASE,
    "random": BASE,
    "moments": BASE,
    "tracing": BASE | {"moments"},
    "theory": ENGINES,
    # Never theory or initializers: else their agreement would prove nothing.
    "measurement": ENGINES | {"random"},
    "initializers": ENGINES | {"random"},
    "initializers.automatic": ENGINES | {"random", "theory", "initializers"},
    "initializers.initialize": ENGINES
    | {"random", "initializers", "initializers.automatic"},
    "initializers.__init__": {
        "initializers",
        "initializers.automatic",
        "initializers.initialize",
    },
    "nn": ENGINES | {"initializers"},
    "zoo": ENGINES | {"initializers", "nn"},
    "expressivity": BASE | {"tracing", "nn"},
    "report": LIBRARY,
    "__init__": LIBRARY,
    "cli": {PUBLIC, "command_line"},
    "command_line": BASE,
    "experiments": {
        PUBLIC,
        "errors",
        "nn",
        "zoo",
        "expressivity",
        "report",
        "theory",
    },
    "experiments.claims": {PUBLIC, "experiments"} | LIBRARY,
    "benchmarks": {PUBLIC, "experiments"} | LIBRARY,
}

# Modules from outside, and the files or folders/ that alone may import them. What is
# under `if TYPE_CHECKING:` is never loaded, so annotations may name them anywhere;
# JAX's internals may not even be named.
ONLY_IN: dict[str, tuple[str, ...]] = {
    "jax._src": ("layerwise/_jax.py",),
    "jax.core": ("layerwise/_jax.py",),
    "jax.extend": ("layerwise/_jax.py",),
    "jax.interpreters": ("layerwise/_jax.py",),
    "matplotlib": ("layerwise/report/plots.py", "layerwise/report/regions_plot.py"),
    "ml_collections": ("experiments/",),
    "tensorflow": ("experiments/",),
    "tensorflow_datasets": ("experiments/",),
}
NEVER_IN: dict[str, tuple[str, ...]] = {"flax": ("layerwise/theory/",)}


def violations(root: Path) -> list[str]:
    """Lists what breaks a rule in the tree at `root`, as `file:line: reason`."""
    found = []
    exported = {f"layerwise.{name}" for name in _exported(root)}
    for path in sorted(p for top in SCANNED for p in (root / top).rglob("*.py")):
        file, text = path.relative_to(root).as_posix(), path.read_text()
        importer = _part(root, _dotted(file))
        if importer not in MAY_IMPORT:
            found.append(f"{file}:1: part {importer!r} has no line in MAY_IMPORT")
            continue
        n_lines = len(text.splitlines())
        if file.startswith("layerwise/") and n_lines > MAX_LINES:
            found.append(f"{file}:{n_lines}: more than {MAX_LINES} lines")
        tree = ast.parse(text)
        never_run = _never_run(tree)
        for line, name in _imports(tree):
            if name.startswith("."):
                reason = "relative import"
            elif name.split(".")[0] in SCANNED:
                target = _part(root, name)
                allowed = MAY_IMPORT[importer] | {importer}
                fine = target in allowed or (PUBLIC in allowed and name in exported)
                reason = "" if fine else f"{importer} imports {target}"
            elif line in never_run and not name.startswith("jax."):
                reason = ""
            else:
                reason = _outside(file, name)
            if reason:
                found.append(f"{file}:{line}: {reason} ({name})")
    return found


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields line and full name of all that is imported, wherever in the file."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                module = "." * node.level + (node.module or "")
                yield from ((node.lineno, f"{module}.{a.name}") for a in node.names)
            case ast.Attribute(value=ast.Name(id="jax")):
                yield node.lineno, f"jax.{node.attr}"  # jax.core.Tracer needs no import


def _exported(root: Path) -> list[str]:
    for node in ast.parse((root / "layerwise" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def _never_run(tree: ast.AST) -> set[int]:
    """The lines under `if TYPE_CHECKING:`."""
    return {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and ast.unparse(node.test).endswith("TYPE_CHECKING")
        and not ast.unparse(node.test).startswith("not ")
        for statement in node.body
        for line in range(statement.lineno, (statement.end_lineno or 0) + 1)
    }


def _dotted(file: str) -> str:
    return file.removesuffix(".py").replace("/", ".")


def _part(root: Path, name: str) -> str:
    """Names the part of the repository that the dotted `name` belongs to."""
    top, _, rest = name.partition(".")
    if top != "layerwise":
        return _longest_prefix(name, MAY_IMPORT) or top
    first = rest.partition(".")[0]
    folder = root / "layerwise"
    if not (folder / first).is_dir() and not (folder / f"{first}.py").is_file():
        return PUBLIC  # a name that layerwise/__init__.py exports
    return _longest_prefix(rest, MAY_IMPORT) or first or PUBLIC


def _longest_prefix(name: str, prefixes: Iterable[str]) -> str:
    return max((p for p in prefixes if _is_under(name, p)), key=len, default="")


def _is_under(name: str, prefix: str) -> bool:
    return f"{name}.".startswith(f"{prefix}.")


def _outside(file: str, name: str) -> str:
    """Why `file` may not import `name` from outside the repository; empty if it may."""
    for module, places in ONLY_IN.items():
        if _is_under(name, module) and not file.startswith(places):
            return f"only {', '.join(places)} may import {module}"
    for module, places in NEVER_IN.items():
        if _is_under(name, module) and file.startswith(places):
            return f"{', '.join(places)} may not import {module}"
    return ""


def test_imports_point_one_way():
    assert (ROOT / "layerwise" / "__init__.py").is_file()
    found = violations(ROOT)
    assert not found, "\n".join(["", *found])


def test_the_table_names_only_its_own_parts():
    mentioned = set().union(*MAY_IMPORT.values())
    assert mentioned - {PUBLIC} <= set(MAY_IMPORT)


GOOD = {
    "layerwise/__init__.py": (
        "from layerwise import report\nfrom layerwise.report.plots import plot\n"
        "__all__ = ['plot', 'report']\n"
    ),
    "layerwise/_jax.py": "from jax.extend import core\nfrom jax._src import util\n",
    "layerwise/cli.py": "import layerwise as lw\nfrom layerwise import plot, report\n",
    "layerwise/types.py": "import jax\njax.Array\n",
    "layerwise/moments/pooling.py": "from layerwise import types\n",
    "layerwise/theory/recursion.py": "from layerwise.moments import pooling\n",
    "layerwise/initializers/asv.py": "from layerwise.moments.pooling import tau\n",
    "layerwise/initializers/automatic.py": "from layerwise.theory import recursion\n",
    "layerwise/initializers/initialize.py": (
        "from layerwise.initializers import asv, automatic\n"
    ),
    "layerwise/report/plots.py": (
        "import matplotlib.pyplot as plt\nfrom layerwise.theory import recursion\n"
    ),
    "layerwise/report/report.py": (
        "if typing.TYPE_CHECKING:\n    from matplotlib.axes import Axes\n"
    ),
    "experiments/demo.py": (
        "import ml_collections\nimport layerwise as lw\n"
        "from layerwise.zoo import plain\nfrom experiments import data\n"
    ),
}

BAD = {
    "against the arrow": (
        "layerwise/moments/bad.py",
        "from layerwise.tracing import graph",
        "moments imports tracing",
    ),
    "inside a function": (
        "layerwise/measurement/bad.py",
        "def f():\n    import layerwise.theory",
        "bad.py:2: measurement imports theory",
    ),
    "measurement of initializers": (
        "layerwise/measurement/bad.py",
        "from layerwise import initializers",
        "measurement imports initializers",
    ),
    "automatic from a plain initializer": (
        "layerwise/initializers/bad.py",
        "from layerwise.initializers.automatic import f",
        "initializers imports initializers.automatic",
    ),
    "theory from a plain initializer": (
        "layerwise/initializers/bad.py",
        "from layerwise.theory.recursion import f",
        "initializers imports theory",
    ),
    "the public API from below": (
        "layerwise/nn/bad.py",
        "import layerwise as lw",
        "nn imports layerwise",
    ),
    "the inside from the command line": (
        "layerwise/cli.py",
        "from layerwise.report import table",
        "cli imports report",
    ),
    "the inside from an experiment": (
        "experiments/bad.py",
        "from layerwise.moments import pooling",
        "experiments imports moments",
    ),
    "an experiment from the library": (
        "layerwise/report/bad.py",
        "from experiments.data import digits",
        "report imports experiments",
    ),
    "relative": ("layerwise/nn/bad.py", "from . import dense", "relative import"),
    "an unknown part": ("layerwise/bad.py", "", "'bad' has no line in MAY_IMPORT"),
    "JAX internals": (
        "layerwise/theory/bad.py",
        "from jax.extend import core",
        "only layerwise/_jax.py may import jax.extend",
    ),
    "JAX internals as an attribute": (
        "experiments/bad.py",
        "import jax\njax.core.Tracer",
        "bad.py:2: only layerwise/_jax.py may import jax.core",
    ),
    "JAX internals in an annotation": (
        "layerwise/theory/bad.py",
        "if TYPE_CHECKING:\n    from jax._src.core import Jaxpr",
        "bad.py:2: only layerwise/_jax.py may import jax._src",
    ),
    "theory in an annotation": (
        "layerwise/measurement/bad.py",
        "if TYPE_CHECKING:\n    from layerwise.theory import recursion",
        "measurement imports theory",
    ),
    "matplotlib where it is loaded after all": (
        "layerwise/report/bad.py",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import matplotlib",
        "layerwise/report/regions_plot.py may import matplotlib",
    ),
    "flax in theory": (
        "layerwise/theory/bad.py",
        "import flax.linen as nn",
        "layerwise/theory/ may not import flax",
    ),
    "matplotlib outside the plots": (
        "layerwise/report/bad.py",
        "from matplotlib import pyplot",
        "layerwise/report/regions_plot.py may import matplotlib",
    ),
    "data sets in the library": (
        "layerwise/zoo/bad.py",
        "import tensorflow_datasets as tfds",
        "only experiments/ may import tensorflow_datasets",
    ),
    "a file too long": (
        "layerwise/nn/bad.py",
        "x = 1\n" * (MAX_LINES + 1),
        f"more than {MAX_LINES} lines",
    ),
}


def _write(root: Path, files: dict[str, str]) -> None:
    for file, text in files.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_a_good_tree_passes(tmp_path):
    _write(tmp_path, GOOD)
    assert violations(tmp_path) == []


@pytest.mark.parametrize("name", BAD)
def test_a_bad_tree_fails(name, tmp_path):
    file, text, reason = BAD[name]
    packages = {
        f"layerwise/{part}/__init__.py": ""
        for part in ("tracing", "initializers", "theory", "report", "zoo")
    }
    _write(tmp_path, packages | GOOD | {file: text})
    (found,) = violations(tmp_path)
    assert reason in found
