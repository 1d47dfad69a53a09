"""Comparison of a challenger with the champion on all queries of the gate, and the checks of what it loses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.config import Gate, JudgedQueries
from diptych.errors import some
from diptych.registry.decision import Check, GuardComparison, JudgedComparison
from diptych.registry.guard_sets import GuardGallery
from diptych.registry.judged_queries import require_enough
from diptych.registry.measuring import Gallery, Measured
from diptych.retrieval.comparison import Comparison, K, compare
from diptych.retrieval.slices import Part
from diptych.retrieval.uncertainty import interval_ends, resampled_sums
from diptych.serving.judged_queries import JudgedQuery

_EXAMPLES = 3
"""Parts of the queries that a check names."""


class Queries(NamedTuple):
    """The queries that both versions are measured on."""

    test: Gallery
    guarded: list[Part]
    """Parts of the test split's queries on which a version must not lose."""
    guard_sets: list[GuardGallery]
    judged: list[JudgedQuery]


class Compared(NamedTuple):
    """Comparisons with the champion, as `Decision` has them."""

    comparison: Comparison
    guard_sets: dict[str, GuardComparison]


def compare_with_champion(champion: Measured, challenger: Measured, queries: Queries) -> Compared:
    """Return the comparisons of the challenger with the champion, which were measured on these queries."""
    return Compared(
        compare(champion.ranks, challenger.ranks, queries.test.image_of_caption, queries.guarded),
        _compare_on_guard_sets(champion, challenger, queries.guard_sets),
    )


def loss_checks(compared: Compared, gate: Gate) -> list[Check]:
    """Return the checks that the challenger loses nowhere more than the margins of params.yaml."""
    return [*_test_losses(compared.comparison, gate), *_guard_losses(compared.guard_sets, gate)]


def compare_on_judged_queries(
    before: NDArray[np.float64], after: NDArray[np.float64], settings: JudgedQueries
) -> JudgedComparison:
    """Return the comparison of the ranks (Q,) by the champion (before) with those by the challenger (after).

    Raises:
        DiptychError: too few queries have a right image in the collection.
    """
    # An image may have left the collection between the two searches.
    in_both = ~np.isnan(before) & ~np.isnan(after)
    require_enough(int(in_both.sum()), settings)
    hits = np.stack([before[in_both] <= K, after[in_both] <= K], axis=1).astype(np.int64)
    recalls = 100 * hits.mean(axis=0)
    drawn = resampled_sums(hits)
    low, high = interval_ends(100 * (drawn[:, 1] - drawn[:, 0]) / len(hits))
    return JudgedComparison(settings.md5, len(hits), float(recalls[0]), float(recalls[1]), low, high)


def judged_loss_check(judged: JudgedComparison, settings: JudgedQueries) -> Check:
    """Return the check that the challenger does not lose more than the margin on the judged queries."""
    requirement = f"on {judged.queries} judged queries no sure loss of recall@10 above {settings.margin:g}"
    return Check(requirement, judged.high >= -settings.margin, judged.describe())


def _test_losses(comparison: Comparison, gate: Gate) -> list[Check]:
    gain = comparison.rsum
    lost = [part for part in comparison.parts if part.high < -gate.slice_margin]
    return [
        Check(
            f"its RSUM is not more than {gate.rsum_margin:g} below the champion's",
            gain.low >= -gate.rsum_margin,
            gain.describe(),
        ),
        Check(
            f"in no part of the queries recall@10 loses more than {gate.slice_margin:g}, by its 95 % interval",
            not lost,
            some([part.describe() for part in lost], _EXAMPLES, "; ") or f"none of {len(comparison.parts)} parts",
        ),
    ]


def _compare_on_guard_sets(
    champion: Measured, challenger: Measured, guard_sets: Sequence[GuardGallery]
) -> dict[str, GuardComparison]:
    comparisons = {}
    for guard_set in guard_sets:
        before, after = champion.guard_ranks[guard_set.name], challenger.guard_ranks[guard_set.name]
        comparison = compare(before, after, guard_set.image_of_caption, [])
        comparisons[guard_set.name] = GuardComparison(guard_set.settings.md5, comparison)
    return comparisons


def _guard_losses(on_guard_sets: Mapping[str, GuardComparison], gate: Gate) -> list[Check]:
    checks = []
    for name, on in on_guard_sets.items():
        gain, margin = on.comparison.rsum, gate.guard_sets[name].margin
        requirement = f"on guard set {name} its RSUM is not more than {margin:g} below the champion's"
        checks.append(Check(requirement, gain.low >= -margin, gain.describe()))
    return checks
