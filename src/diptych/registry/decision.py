"""The decision of the gate about a version, with its evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diptych.retrieval.comparison import Comparison
from diptych.retrieval.metrics import Metrics


class Check(NamedTuple):
    """A requirement for a champion; `found` is what was measured."""

    name: str
    passed: bool
    found: str


class GuardComparison(NamedTuple):
    """Comparison with the champion on a guard set."""

    md5: str
    """Hash of the set's folder."""
    comparison: Comparison


class JudgedComparison(NamedTuple):
    """Recall@10 on the judged queries of users, in percent, by the champion (before) and by the version (after)."""

    md5: str
    """Hash of the folder with the judgements."""
    queries: int
    """Number of queries with a right image in the collection."""
    before: float
    after: float
    low: float
    """Lower end of the 95 % interval of after − before, by the bootstrap over the queries."""
    high: float
    """Upper end of it."""

    def describe(self) -> str:
        """Return the gain with its interval."""
        return f"{self.after - self.before:+.1f} ({self.low:+.1f} to {self.high:+.1f})"


@dataclass(frozen=True)
class Decision:
    """The checks of `version`, its metrics, and its comparisons with the champion.

    The comparison is None where there was no champion, or one of both could not be measured. Then there are none on
    guard sets and judged queries either.
    """

    name: str
    version: str
    champion: str | None
    data_md5: str
    evaluator_sha256: str
    gate_sha256: str
    """`Gate.sha256` of the conditions."""
    checks: list[Check]
    metrics: dict[str, Metrics]
    """Metrics of the version, by stage; empty where it could not be measured."""
    comparison: Comparison | None = None
    guard_sets: Mapping[str, GuardComparison] = field(default_factory=dict)
    """Comparisons on guard sets, by their names."""
    judged_queries: JudgedComparison | None = None
    """Comparison on judged queries; None where params.yaml names none, or another check fails."""

    @property
    def accepted(self) -> bool:
        """True if the version passes every check."""
        return all(check.passed for check in self.checks)

    @property
    def summary(self) -> str:
        """The reason, in one sentence."""
        failed = [f"{check.name}: {check.found}" for check in self.checks if not check.passed]
        if failed:
            return "the gate refuses it: " + "; ".join(failed)
        if self.comparison is None:
            return f"RSUM {self.metrics['reranked']['rsum']:.1f}, and there is no champion to compare with"
        guarded = [f"{on.comparison.rsum.describe()} on {name}" for name, on in self.guard_sets.items()]
        if self.judged_queries is not None:
            guarded.append(
                f"recall@10 {self.judged_queries.describe()} on {self.judged_queries.queries} judged queries"
            )
        return ", ".join([f"RSUM {self.comparison.rsum.describe()} against version {self.champion}", *guarded])

    def figures(self) -> dict[str, float]:
        """Return the numbers that history stores."""
        figures = {"rsum": self.metrics["reranked"]["rsum"]} if self.metrics else {}
        if self.comparison is not None:
            gain = self.comparison.rsum
            figures |= {"gain": gain.rsum, "gain_low": gain.low, "gain_high": gain.high}
        return {name: round(value, 4) for name, value in figures.items()}

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "decision": "accepted" if self.accepted else "rejected",
            "name": self.name,
            "version": self.version,
            "champion": self.champion,
            "summary": self.summary,
            "data_md5": self.data_md5,
            "evaluator_sha256": self.evaluator_sha256,
            "gate_sha256": self.gate_sha256,
            "checks": [check._asdict() for check in self.checks],
            "metrics": self.metrics,
            "comparison": self.comparison.to_json() if self.comparison else None,
            "guard_sets": {
                name: {"md5": on.md5, "comparison": on.comparison.to_json()} for name, on in self.guard_sets.items()
            },
            "judged_queries": self.judged_queries._asdict() if self.judged_queries else None,
        }

    def render(self) -> str:
        """Return the decision as Markdown."""
        against = f"against version {self.champion}" if self.champion else "with no champion to compare with"
        word = "accepted" if self.accepted else "rejected"
        rows = [f"| {check.name} | {'yes' if check.passed else 'NO'} | {check.found} |" for check in self.checks]
        return "\n".join(
            [
                f"# {self.name} version {self.version}: {word}",
                "",
                f"Measured on dataset version {self.data_md5[:12]}, {against}.",
                "",
                "| check | passed | found |",
                "|---|---|---|",
                *rows,
            ]
        )
