"""What a verdict says, one sentence at a time."""

import ast
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from layerwise.report.evidence import Estimate


SEVERITIES = ("sick", "undecided", "warning", "note")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a network, or worth knowing about it.

    Attributes:
        kind: Such as "vanishing", "exploding", "dead_units"; see docs/verdict.md.
        severity: "sick" (it will not train as it is), "undecided" (the evidence could
            not have shown it), "warning" (it may hurt), or "note".
        direction: "forward", "backward", or "" where it has none.
        layer: Number of the first layer concerned; 0 for the network as a whole.
        path: Its path; empty for the network as a whole.
        evidence: Name -> number, with its standard error over networks.
        reason: Why, in one sentence.
        fix: What to type.
    """

    kind: str
    severity: str
    direction: str
    layer: int
    path: str
    evidence: Mapping[str, Estimate]
    reason: str
    fix: str

    @property
    def fix_is_code(self) -> bool:
        """Whether the fix is Python as it stands, not words."""
        try:
            return bool(ast.parse(self.fix).body)
        except SyntaxError:
            return False

    def as_record(self) -> dict[str, Any]:
        """Returns the finding as JSON takes it."""
        record = dataclasses.asdict(self)
        record["evidence"] = {
            name: [v if math.isfinite(v) else None for v in (e.value, e.sem)]
            for name, e in self.evidence.items()
        }
        return record

    def __str__(self) -> str:
        where = f" at {self.path}" if self.path else ""
        way = f" {self.direction}" if self.direction else ""
        name = self.kind.replace("_", " ")
        numbers = ", ".join(f"{k} = {v}" for k, v in self.evidence.items())
        lines = [f"[{self.severity}] {name}{way}{where}: {self.reason}"]
        if numbers:
            lines.append(f"    evidence: {numbers}")
        if self.fix:
            lines.append(f"    fix: {self.fix}")
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Diagnosis(Sequence[Finding]):
    """Findings, worst first, and the verdict that they amount to.

    Attributes:
        findings: Worst first.
        title: What was looked at.
        tolerance: The factor by which a second moment may change.
        basis: What the verdict rests on, in words.
    """

    findings: tuple[Finding, ...]
    title: str
    tolerance: float
    basis: str

    @property
    def verdict(self) -> str:
        """Returns "sick", "undecided" or "healthy".

        It is healthy only where nothing was found that makes it sick, and where the
        evidence could have shown it.
        """
        found = {f.severity for f in self.findings}
        return next((s for s in ("sick", "undecided") if s in found), "healthy")

    @property
    def healthy(self) -> bool:
        """Whether the verdict is healthy."""
        return self.verdict == "healthy"

    def __len__(self) -> int:
        return len(self.findings)

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        return self.findings[index]

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __str__(self) -> str:
        head = f"{self.title}: {self.verdict.upper()} ({self.basis})"
        return "\n".join([head, *map(str, self.findings)])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        from layerwise.report.page import diagnosis_html

        return diagnosis_html(self)


def worst_first(findings: Iterator[Finding]) -> tuple[Finding, ...]:
    """Sorts findings by severity, then by layer."""
    return tuple(
        sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), f.layer))
    )
