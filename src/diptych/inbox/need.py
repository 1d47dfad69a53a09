"""Whether there is a reason to train, by what the champion learned from."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diptych.config import Params
from diptych.data.accepted import Accepted, read_accepted
from diptych.drift.distance import Drift, compare
from diptych.drift.profile import Profile, gone_images, make_profile, new_images
from diptych.errors import DiptychError
from diptych.inbox.decision import changed_beyond_data, reasons_to_train, why_not
from diptych.inbox.ledger import Taken
from diptych.project.workspace import Workspace
from diptych.registry.data_profile import profile_of_run
from diptych.registry.registered_model import RegisteredModel, Version, explained, model_folder


class Need(NamedTuple):
    """Why a run trains, or why not: one of both is empty."""

    reasons: list[str]
    why_not: str = ""
    drift: Drift | None = None
    """Of the images that are new since the champion; None where there are none, or nothing to compare with."""


def need_to_train(workspace: Workspace, params: Params, taken: Sequence[Taken], status: Mapping[str, Any]) -> Need:
    """Compares the accepted pairs with those of the champion; the validate stage has run.

    A champion that cannot be looked at is a reason: to train once too often costs less than to wait for who looks.

    Args:
        taken: what became of the drops of this run.
        status: what differed from the last results: `dvc.status`, not empty.
    """
    try:
        return _compare_with_champion(workspace, params, taken, status)
    except DiptychError as error:
        return Need([f"It is not known what is new since the champion: {error}"])


def _compare_with_champion(
    workspace: Workspace, params: Params, taken: Sequence[Taken], status: Mapping[str, Any]
) -> Need:
    model = RegisteredModel.of(workspace, params)
    champion = model.champion() if model.exists() else None
    with explained(model.uri):
        reference = profile_of_run(model.client, champion.run_id) if champion else None
    changed = changed_beyond_data(status)
    if champion is None or reference is None or not reference.images:
        return Need(reasons_to_train(taken, None, changed, None, params))
    accepted = read_accepted(workspace.data, workspace.manifest, workspace.captions)
    new = new_images(accepted, params, reference)
    growth = len(new) / reference.images
    drift = _drift(accepted, params, model, champion, reference, new) if new else None
    reasons = reasons_to_train(taken, drift, changed, growth, params)
    # Somebody took them out, by `diptych data revert` say, so that no model learns from them.
    if gone := gone_images(accepted, params, reference):
        reasons.append(f"{gone:,} images that the champion learned from are in train no more.")
    if not reasons and not params.retrain.new_share:
        reasons = ["The dataset has changed."]
    return Need(reasons, "" if reasons else why_not(taken, growth, params), drift)


def _drift(
    accepted: Accepted, params: Params, model: RegisteredModel, champion: Version, reference: Profile, new: list[int]
) -> Drift:
    with tempfile.TemporaryDirectory() as folder:
        package = model.download(champion, Path(folder))
        return compare(reference, make_profile(accepted, params, new, model_folder(package)), params)
