"""Comparison of the accepted pairs with those that the champion learned from, which decides whether a run trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diptych.config import Params
from diptych.data.accepted import read_accepted
from diptych.drift.distance import Drift, compare
from diptych.drift.profile import Profile, added_captions, gone_images, make_profile, new_images
from diptych.drift.queries import caption_dimensions, compare_queries
from diptych.errors import DiptychError
from diptych.inbox.ledger import DropResult
from diptych.project.workspace import Workspace
from diptych.registry.data_profile import load_profile
from diptych.registry.errors import mlflow_errors_explained
from diptych.registry.registered_model import RegisteredModel, Version
from diptych.registry.serving import model_sha256
from diptych.serving.queries import read_queries

_STAGE_OUTPUTS = ("data", "artifacts/", "reports/")
"""Dependencies that other stages write; they change with the data."""


class Need(NamedTuple):
    """Reasons why a run trains, or the explanation why it does not: exactly one of the two is empty."""

    reasons: list[str]
    explanation: str = ""
    drift: Drift | None = None
    """Drift of the images that are new since the champion; None where there are none, or nothing to compare with."""


def need_to_train(
    workspace: Workspace, params: Params, results: Sequence[DropResult], status: Mapping[str, Any]
) -> Need:
    """Compare the accepted pairs with those of the champion; the validate stage has run.

    A champion that cannot be read is a reason: an unneeded training costs less than waiting for a person to look.

    `results` are the outcomes of the drops of this run, and `status` is what `dvc.status` returned, not empty.
    """
    try:
        return _compare_with_champion(workspace, params, results, status)
    except DiptychError as error:
        return Need([f"It is not known what is new since the champion: {error}"])


def _compare_with_champion(
    workspace: Workspace, params: Params, results: Sequence[DropResult], status: Mapping[str, Any]
) -> Need:
    model = RegisteredModel.of(workspace, params)
    champion = model.champion() if model.exists() else None
    with mlflow_errors_explained(model.uri):
        reference = load_profile(model.client, champion.run_id) if champion else None
    changed = changed_beyond_data(status)
    if champion is None or reference is None or not reference.images:
        return Need(reasons_to_train(results, None, changed, None, params))
    accepted = read_accepted(workspace.data, workspace.manifest, workspace.captions)
    new = new_images(accepted, params, reference)
    growth = NewImages(len(new), reference.images)
    drift = None
    if new:
        with model.fetched(champion) as package:
            drift = compare(reference, make_profile(accepted, params, new, package), params)
    reasons = reasons_to_train(results, drift, changed, growth, params)
    # A person removed them, for example with `diptych data revert`, so that no model learns from them.
    if gone := gone_images(accepted, params, reference):
        reasons.append(f"{gone:,} images that the champion learned from are in train no more.")
    queries = query_drift(workspace, champion, reference, params)
    # On the data that the champion learned from, training would make the champion again.
    if queries and (growth.new or added_captions(accepted, params, reference)):
        reasons += queries
    if not reasons and not params.retrain.new_share:
        reasons = ["The dataset has changed."]
    return Need(reasons, "" if reasons else explain_no_training(results, growth, params, queries), drift)


def query_drift(workspace: Workspace, champion: Version, reference: Profile, params: Params) -> list[str]:
    """Return why the queries that `diptych serve --feedback` has kept are a reason to train; nothing if they are none.

    `reference` is the profile of the champion's training data.
    """
    queries = read_queries(workspace.queries, model_sha256(champion), caption_dimensions(reference))
    return compare_queries(reference, queries, params.retrain.drift).reasons if queries.texts else []


class NewImages(NamedTuple):
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
    changed_stages: Sequence[str],
    growth: NewImages | None,
    params: Params,
) -> list[str]:
    """Return the reasons why a scheduled run trains; `growth` is None where the champion's data is not known."""
    reasons = []
    if growth is None:
        reasons.append(f"{params.register_.model_name} has no champion yet, or none that tells what it learned from.")
    elif growth.new and growth.share >= params.retrain.new_share:
        images = sum(result.images for result in results)
        by_drops = f" The drops of this run brought {images:,} images, of all splits." if images else ""
        reasons.append(f"{growth.describe()}, at least retrain.new_share ({params.retrain.new_share:.1%}).{by_drops}")
    if changed_stages:
        reasons.append(f"Code or parameters have changed for {', '.join(changed_stages)}.")
    return reasons + (drift.reasons if drift else [])


def explain_no_training(
    results: Sequence[DropResult], growth: NewImages, params: Params, queries: Sequence[str] = ()
) -> str:
    """Return why a run that has no reason to train does not; `queries` are sentences on the drift of queries."""
    if not growth.new:
        refused = sum(result.outcome == "refused" for result in results)
        aside = f" ({refused} of {len(results)} drops were refused)" if refused else ""
        nothing = f"Nothing is new since the champion{aside}, and nothing has changed."
        if not queries:
            return nothing
        return (
            f"{nothing} {' '.join(queries)} There is nothing new to learn from, though: add pairs like them by "
            "`diptych feedback export --drop`."
        )
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
