"""Whether a scheduled run has a reason to train, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diptych.config import Params
from diptych.drift.distance import Drift
from diptych.inbox.ledger import Taken

_MADE = ("data", "artifacts/", "reports/")
"""What stages hand on to each other; it changes with the data."""


def reasons_to_train(
    taken: Sequence[Taken], drift: Drift | None, changed_stages: Iterable[str], growth: float | None, params: Params
) -> list[str]:
    """Why a scheduled run trains; empty where it has no reason to, which `why_not` says.

    Args:
        taken: what became of the drops of this run.
        drift: of the images that are new since the champion; None where there are none, or nothing to compare with.
        changed_stages: those whose code or parameters have changed: `changed_beyond_data`.
        growth: new train images as a share of those that the champion learned from; None where that is not known.
    """
    reasons = []
    if growth is None:
        reasons.append(f"{params.register_.model_name} has no champion yet, or none that tells what it learned from.")
    elif growth > 0 and growth >= params.retrain.new_share:
        reasons.append(
            f"There are {growth:.1%} more train images than the champion learned from; retrain.new_share is "
            f"{params.retrain.new_share:.1%}.{_by_drops(taken)}"
        )
    if stages := list(changed_stages):
        reasons.append(f"Code or parameters have changed for {', '.join(stages)}.")
    return reasons + (drift.reasons if drift else [])


def why_not(taken: Sequence[Taken], growth: float | None, params: Params) -> str:
    """Why a run that has no reason to train does not."""
    if not growth:
        refused = sum(one.outcome == "refused" for one in taken)
        aside = f" ({refused} of {len(taken)} drops were refused)" if refused else ""
        return f"Nothing is new since the champion{aside}, and nothing has changed."
    return (
        f"There are {growth:.1%} more train images than the champion learned from, fewer than the "
        f"{params.retrain.new_share:.1%} of retrain.new_share, and they have not drifted."
    )


def changed_beyond_data(status: Mapping[str, Any]) -> list[str]:
    """Of what `dvc.status` says, the stages that would run anew by their code, command or parameters, not by data."""
    return [stage for stage, changes in status.items() if not stage.endswith(".dvc") and any(map(_is_own, changes))]


def _is_own(change: Any) -> bool:
    if not isinstance(change, Mapping):
        return True  # "changed command"
    return any(not name.startswith(_MADE) for name in change.get("changed deps", ()))


def _by_drops(taken: Sequence[Taken]) -> str:
    images = sum(one.images for one in taken)
    return f" The drops of this run brought {images:,} images, of all splits." if images else ""
