"""Reasons for or against training in a scheduled run, as sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from diptych.config import Params
from diptych.drift.distance import Drift
from diptych.inbox.ledger import DropResult

_STAGE_OUTPUTS = ("data", "artifacts/", "reports/")
"""Dependencies that other stages write; they change with the data."""


class Growth(NamedTuple):
    """Number of train images that are new since the champion, and of those that the champion learned from."""

    new: int
    champion: int

    @property
    def share(self) -> float:
        """New images per image that the champion learned from."""
        return self.new / self.champion

    def describe(self) -> str:
        """Return the counts as a clause."""
        return f"{self.new:,} train images are new, {self.share:.1%} of the champion's {self.champion:,}"


def reasons_to_train(
    results: Sequence[DropResult],
    drift: Drift | None,
    changed_stages: Iterable[str],
    growth: Growth | None,
    params: Params,
) -> list[str]:
    """Return the reasons why a scheduled run trains; empty where it has none.

    Args:
        results: outcomes of the drops of this run.
        drift: drift of the images that are new since the champion; None where there are none, or no profile to
            compare them with.
        changed_stages: stages whose code or parameters have changed, from `changed_beyond_data`.
        growth: None where it is not known what the champion learned from.
        params: parameters with `retrain.new_share`.
    """
    reasons = []
    if growth is None:
        reasons.append(f"{params.register_.model_name} has no champion yet, or none that tells what it learned from.")
    elif growth.new and growth.share >= params.retrain.new_share:
        reasons.append(f"{growth.describe()}; retrain.new_share is {params.retrain.new_share:.1%}.{_by_drops(results)}")
    if stages := list(changed_stages):
        reasons.append(f"Code or parameters have changed for {', '.join(stages)}.")
    return reasons + (drift.reasons if drift else [])


def explain_no_training(results: Sequence[DropResult], growth: Growth, params: Params) -> str:
    """Return why a run that has no reason to train does not."""
    if not growth.new:
        refused = sum(result.outcome == "refused" for result in results)
        aside = f" ({refused} of {len(results)} drops were refused)" if refused else ""
        return f"Nothing is new since the champion{aside}, and nothing has changed."
    return (
        f"{growth.describe()}, fewer than the {params.retrain.new_share:.1%} of retrain.new_share, and they have not "
        "drifted."
    )


def changed_beyond_data(status: Mapping[str, Any]) -> list[str]:
    """Return the stages in `dvc.status` that would run again because of their code, command or parameters."""
    return [
        stage for stage, changes in status.items() if not stage.endswith(".dvc") and any(map(_beyond_data, changes))
    ]


def _beyond_data(change: Any) -> bool:
    if not isinstance(change, Mapping):
        return True  # "changed command"
    return any(not name.startswith(_STAGE_OUTPUTS) for name in change.get("changed deps", ()))


def _by_drops(results: Sequence[DropResult]) -> str:
    images = sum(result.images for result in results)
    return f" The drops of this run brought {images:,} images, of all splits." if images else ""
