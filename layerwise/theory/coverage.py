"""Prints docs/coverage.md, by ``python -m layerwise.theory.coverage``."""

import sys

from layerwise.theory import rules
from layerwise.theory.registry import coverage_table


assert rules.__all__  # imported to register them


if __name__ == "__main__":
    sys.stdout.write(coverage_table())
