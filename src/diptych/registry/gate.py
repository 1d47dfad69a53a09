"""The gate, which decides with evidence whether a version may become champion.

Both versions are measured on the project's test split as it is now, on guard sets, and on judged queries of users, by
the same evaluation, so that a champion of an older dataset is not judged by its old figures.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diptych.config import Gate, Params
from diptych.errors import DiptychError, some
from diptych.project.provenance import UNKNOWN
from diptych.project.record import dataset_version
from diptych.project.workspace import Workspace
from diptych.registry.answer_time import answer_time
from diptych.registry.comparing import (
    Queries,
    compare_on_judged_queries,
    compare_with_champion,
    judged_loss_check,
    loss_checks,
)
from diptych.registry.decision import Check, Decision, JudgedComparison
from diptych.registry.errors import reason
from diptych.registry.guard_sets import open_guard_sets
from diptych.registry.judged_queries import judged_ranks, open_judged_queries
from diptych.registry.measuring import Gallery, Measured, gallery, measure
from diptych.registry.model_card import with_decision
from diptych.registry.registered_model import FetchError, RegisteredModel, Version, model_folder
from diptych.retrieval.evaluation import evaluator_sha256
from diptych.retrieval.metrics import Metrics, chance_metrics
from diptych.retrieval.slices import Part
from diptych.retrieval.uncertainty import bootstrap, interval

_EXAMPLES = 3
"""Broken expectations that a check names."""


class _Candidate(NamedTuple):
    """A version's package, and what was measured of it."""

    package: Path
    measured: Measured


def decide(
    model: RegisteredModel, version: Version, workspace: Workspace, params: Params, *, missing_fails: bool = False
) -> Decision:
    """Measure `version` and the champion, and judge by `params.gate`; the registry stays as it is.

    With `missing_fails`, a package that cannot be fetched is a failed check, and no error.

    Raises:
        DiptychError: MLflow does not answer, a package cannot be fetched, the project has no test split to measure
            on, or a guard set or the judged queries cannot be used.
    """
    champion = model.champion()
    if champion is not None and champion.version == version.version:
        champion = None
    queries = _open_queries(workspace, params, champion)
    checks: list[Check] = []
    challenger = rival = compared = judged = None
    with tempfile.TemporaryDirectory() as folder:
        package = _fetch(model, version, Path(folder) / "challenger", checks, missing_fails)
        if package is not None:
            checks += [_validation(model, version), _answers(package, params.gate)]
            challenger = _measure(package, workspace, params, version, queries, checks)
        if champion is not None:
            package = _fetch(model, champion, Path(folder) / "champion", checks, missing_fails)
            if package is not None:
                rival = _measure(package, workspace, params, champion, queries, checks)
        if challenger is not None:
            checks += _floors(challenger.measured, queries.test, params.gate)
            if rival is not None:
                compared = compare_with_champion(rival.measured, challenger.measured, queries)
                checks += loss_checks(compared, params.gate)
                judged = _compare_on_judged_queries(rival, challenger, queries, workspace, params, checks)
    return Decision(
        name=model.name,
        version=version.version,
        champion=champion.version if champion else None,
        data_md5=dataset_version(workspace) or UNKNOWN,
        evaluator_sha256=evaluator_sha256(),
        gate_sha256=params.gate.sha256,
        checks=checks,
        metrics=challenger.measured.metrics if challenger else {},
        **(compared._asdict() if compared else {}),
        judged_queries=judged,
    )


def store_decision(model: RegisteredModel, version: Version, decision: Decision) -> None:
    """Store the decision as an artifact of the version's run, and as tags of the version."""
    # A copy in another registered model has the same run.
    path = f"gate/{model.name}-version-{version.version}-against-{decision.champion or 'none'}"
    tags = {
        "gate": "accepted" if decision.accepted else "rejected",
        "gate_champion": decision.champion or "none",
        "gate_data_md5": decision.data_md5,
        "gate_sha256": decision.gate_sha256,
        "gate_summary": decision.summary[:1000],
    }
    with model.errors_explained():
        model.client.log_dict(version.run_id, decision.to_json(), f"{path}.json")
        model.client.log_text(version.run_id, decision.render() + "\n", f"{path}.md")
    model.tag(version, tags)
    with model.errors_explained():
        card = model.client.get_model_version(version.name, version.version).description or ""
        model.client.update_model_version(version.name, version.version, with_decision(card, decision))


def _open_queries(workspace: Workspace, params: Params, champion: Version | None) -> Queries:
    test, guard_sets = gallery(workspace, params), open_guard_sets(workspace, params)
    guarded, judged = _guarded(test, params.gate), open_judged_queries(workspace, params, champion)
    # Without a champion there is nothing to lose.
    return Queries(test, guarded, guard_sets, judged) if champion is not None else Queries(test, guarded, [], [])


def _fetch(
    model: RegisteredModel, version: Version, folder: Path, checks: list[Check], missing_fails: bool
) -> Path | None:
    """Return the downloaded package and add a check of it; return None where it is not what was registered."""
    name = f"version {version.version} is what was registered"
    folder.mkdir()
    try:
        package = model.download(version, folder)
    except DiptychError as error:
        # The store may answer in an hour, so this is no decision, unless a person wants one.
        if isinstance(error, FetchError) and not missing_fails:
            raise DiptychError(
                f"{error} Run again when the artifact store answers; if the package is gone for good, `diptych "
                "rollback` goes back to an earlier champion, and `diptych promote --force --reason TEXT` does without."
            ) from None
        checks.append(Check(name, False, str(error)))
        return None
    checks.append(Check(name, True, f"weights {version.tags['weights_sha256'][:12]}"))
    return package


def _measure(
    package: Path,
    workspace: Workspace,
    params: Params,
    version: Version,
    queries: Queries,
    checks: list[Check],
) -> _Candidate | None:
    name = f"version {version.version}"
    try:
        return _Candidate(package, measure(model_folder(package), workspace, params, name, queries.guard_sets))
    except DiptychError as error:
        checks.append(Check(f"{name} can be measured", False, str(error)))
        return None


def _compare_on_judged_queries(
    champion: _Candidate,
    challenger: _Candidate,
    queries: Queries,
    workspace: Workspace,
    params: Params,
    checks: list[Check],
) -> JudgedComparison | None:
    """Return the comparison on judged queries and add its check; return None without them.

    None is also returned where a check has failed: that refuses the version already, and embedding the whole collection
    would change nothing.
    """
    settings = params.gate.judged_queries
    if settings is None or not queries.judged or not all(check.passed for check in checks):
        return None
    # A collection that cannot be indexed says nothing about the version, so this is no failed check.
    before, after = (
        judged_ranks(queries.judged, settings, model_folder(candidate.package), workspace, params)
        for candidate in (champion, challenger)
    )
    compared = compare_on_judged_queries(before, after, settings)
    checks.append(judged_loss_check(compared, settings))
    return compared


def _validation(model: RegisteredModel, version: Version) -> Check:
    """Return the check that the data of the version's training met all expectations."""
    name = "its training data met all expectations"
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = model.client.download_artifacts(version.run_id, "reports/validation.json", folder)
            expectations = json.loads(Path(path).read_text(encoding="utf-8"))["expectations"]
            broken = [
                f"{result['table']}: {result['expectation']} ({result.get('column') or 'table'})"
                for result in expectations
                if not result["success"]
            ]
            if not expectations:
                raise ValueError("it has no expectations")
        except Exception as error:  # of the network, the store or the file
            return Check(name, False, f"its validation report is missing or damaged ({reason(error, model.uri)})")
    return Check(name, not broken, some(broken, _EXAMPLES, "; ") or f"{len(expectations)} expectations hold")


def _answers(package: Path, gate: Gate) -> Check:
    name = f"it loads in a clean process and answers within {gate.latency_ms:g} ms"
    try:
        times = answer_time(package)
    except DiptychError as error:
        return Check(name, False, str(error))
    found = f"{times['pair_ms']:.0f} ms a pair, loaded in {times['load_s']:.1f} s"
    if times["pair_ms"] <= gate.latency_ms:
        return Check(name, True, found)
    return Check(name, False, f"{found}; gate.latency_ms is the limit, and other work on this machine counts")


def _floors(measured: Measured, test: Gallery, gate: Gate) -> list[Check]:
    metrics = measured.metrics["reranked"]
    floors = list(_configured_floors(metrics, gate))
    if not gate.better_than_chance:
        return floors
    chance = chance_metrics(test.image_of_caption, test.images)["rsum"]
    low = interval(bootstrap({"it": measured.ranks}, test.image_of_caption)["it"])["low"]["rsum"]
    found = f"RSUM {metrics['rsum']:.1f}, 95 % lower bound {low:.1f}; by chance {chance:.1f}"
    return [Check("it is better than chance", low > chance, found), *floors]


def _configured_floors(metrics: Metrics, gate: Gate) -> Iterator[Check]:
    for key, floor in gate.floors.items():
        direction, _, figure = key.rpartition("/")
        value = metrics[direction][figure] if direction else metrics[figure]
        yield Check(f"{key} is at least {floor:g}", value >= floor, f"{value:.1f}")


def _guarded(test: Gallery, gate: Gate) -> list[Part]:
    """Return the parts of the queries on which a version must not lose.

    Raises:
        DiptychError: params.yaml names an attribute that the queries are not parted by.
    """
    known = {part.attribute for part in test.parts}
    if unknown := [name for name in gate.guarded or [] if name not in known]:
        attributes = ", ".join(sorted(known)) or "none"
        raise DiptychError(
            f"params.yaml: gate.guarded: the report has no slices by {unknown[0]!r}; it has {attributes}."
        )
    return [part for part in test.parts if gate.guarded is None or part.attribute in gate.guarded]
