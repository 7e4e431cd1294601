"""Peak resident memory of one variant, in a process of its own.

Run by `benchmarks.measurement`:  python -m benchmarks.peak <network> <variant> <draws>
"""

import re
import resource
import subprocess
import sys
from pathlib import Path

import layerwise as lw
from benchmarks.allocator import as_usual
from benchmarks.jax_variants import Bench
from benchmarks.models import CASES, MANY_DRAWS


def megabytes(network: str, variant: str, draws: int = 0) -> float:
    """Returns the peak resident memory, in MB, of a new process that runs a variant."""
    command = [sys.executable, "-m", "benchmarks.peak", network, variant, str(draws)]
    out = subprocess.run(
        command, capture_output=True, text=True, check=True, env=as_usual()
    ).stdout
    return float(out.split()[-1])


def main(network: str, variant: str, draws: str) -> None:
    """Runs the variant and prints the peak."""
    case = (CASES | MANY_DRAWS)[network]()
    if variant == "draws":
        lw.measure(case.model, None, case.inputs, draws=int(draws), kwargs=case.kwargs)
    else:
        call, _ = Bench(case).single(only=variant)[variant]
        for _ in range(3):
            call()
    print(_peak() / 1024)


def _peak() -> int:
    """Returns the peak of this program in KB.

    Where it can be had, not that of `getrusage`: Linux begins it at what the process
    that started this one held.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main(*sys.argv[1:])
