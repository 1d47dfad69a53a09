"""The gate: whether a version may become champion, and the evidence.

Both versions are measured on the project's test split as it is now, by the same evaluation, so that a champion of an
older dataset is not judged by its old figures.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import diptych
from diptych.config import Gate, Params
from diptych.errors import DiptychError
from diptych.files import sources_sha256
from diptych.project.dataset import dataset_version
from diptych.project.provenance import UNKNOWN
from diptych.project.workspace import Workspace
from diptych.registry.answering import reason
from diptych.registry.measuring import Gallery, Measured, gallery, measure
from diptych.registry.probe import ANSWER
from diptych.registry.registered_model import FetchError, RegisteredModel, Version, model_folder
from diptych.retrieval.comparison import Comparison, compare
from diptych.retrieval.metrics import Metrics, chance_metrics
from diptych.retrieval.slices import Part
from diptych.retrieval.uncertainty import bootstrap, interval

PATIENCE = 600
"""Seconds for a package to load and answer."""
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "TMPDIR")
"""Of the environment, what a package gets to see: no secrets."""

log = logging.getLogger(__name__)


class Check(NamedTuple):
    """One thing that a champion must be."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Decision:
    """What the gate says of `version`, and by what; the champion is None where there was none."""

    name: str
    version: str
    champion: str | None
    data_md5: str
    evaluator_sha256: str
    checks: list[Check]
    metrics: dict[str, Metrics]
    """Of the version, by stage; empty where it could not be measured."""
    comparison: Comparison | None = None

    @property
    def accepted(self) -> bool:
        """Whether every check is passed."""
        return all(check.passed for check in self.checks)

    @property
    def summary(self) -> str:
        """The reason in a sentence."""
        failed = [f"{check.name}: {check.found}" for check in self.checks if not check.passed]
        if failed:
            return "the gate refuses it: " + "; ".join(failed)
        if self.comparison is None:
            return f"RSUM {self.metrics['reranked']['rsum']:.1f}, and there is no champion to compare with"
        gain = self.comparison.rsum
        return f"RSUM {gain.rsum:+.1f} ({gain.low:+.1f} to {gain.high:+.1f}) against version {self.champion}"

    def figures(self) -> dict[str, float]:
        """The numbers that history keeps."""
        found = {"rsum": self.metrics["reranked"]["rsum"]} if self.metrics else {}
        if self.comparison is not None:
            gain = self.comparison.rsum
            found |= {"gain": gain.rsum, "gain_low": gain.low, "gain_high": gain.high}
        return {name: round(value, 4) for name, value in found.items()}

    def to_json(self) -> dict[str, Any]:
        """All of it, as plain values."""
        return {
            "decision": "accepted" if self.accepted else "rejected",
            "name": self.name,
            "version": self.version,
            "champion": self.champion,
            "summary": self.summary,
            "data_md5": self.data_md5,
            "evaluator_sha256": self.evaluator_sha256,
            "checks": [check._asdict() for check in self.checks],
            "metrics": self.metrics,
            "comparison": self.comparison.to_json() if self.comparison else None,
        }

    def render(self) -> str:
        """As Markdown."""
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


def decide(
    model: RegisteredModel, version: Version, workspace: Workspace, params: Params, *, unfetched: bool = False
) -> Decision:
    """Measures `version` and the champion, and judges by `params.gate`; nothing in the registry changes.

    Args:
        unfetched: judge even where a package cannot be fetched; the version is then refused.

    Raises:
        DiptychError: MLflow does not answer, a package cannot be fetched, or the project has no test split to measure
            on.
    """
    champion = model.champion()
    if champion is not None and champion.version == version.version:
        champion = None
    on = gallery(workspace, params)
    guarded = _guarded(on, params.gate)
    checks: list[Check] = []
    challenger = rival = comparison = None
    with tempfile.TemporaryDirectory() as folder:
        found = _package(model, version, Path(folder) / "challenger", checks, unfetched)
        if found is not None:
            checks += [_validation(model, version), _answers(found, params.gate)]
            challenger = _measured(found, workspace, params, version, checks)
        if champion is not None:
            there = _package(model, champion, Path(folder) / "champion", checks, unfetched)
            rival = _measured(there, workspace, params, champion, checks) if there is not None else None
    if challenger is not None:
        checks += _floors(challenger, on, params.gate)
        if rival is not None:
            comparison = compare(rival.ranks, challenger.ranks, on.image_of_caption, guarded)
            checks += _losses(comparison, params.gate)
    return Decision(
        name=model.name,
        version=version.version,
        champion=champion.version if champion else None,
        data_md5=dataset_version(workspace) or UNKNOWN,
        evaluator_sha256=sources_sha256(Path(diptych.__file__).parent, ("data", "model", "retrieval")),
        checks=checks,
        metrics=challenger.metrics if challenger else {},
        comparison=comparison,
    )


def keep(model: RegisteredModel, version: Version, decision: Decision) -> None:
    """Makes the decision an artifact of the version's run, and tags of the version."""
    # A copy in another registered model has the same run.
    path = f"gate/{model.name}-version-{version.version}-against-{decision.champion or 'none'}"
    tags = {
        "gate": "accepted" if decision.accepted else "rejected",
        "gate_champion": decision.champion or "none",
        "gate_data_md5": decision.data_md5,
        "gate_summary": decision.summary[:1000],
    }
    with model.known():
        model.client.log_dict(version.run_id, decision.to_json(), f"{path}.json")
        model.client.log_text(version.run_id, decision.render() + "\n", f"{path}.md")
    model.tag(version, tags)


def answer_time(package: Path) -> dict[str, float]:
    """Seconds to load a package in a clean process, and milliseconds that one pair takes there.

    Raises:
        DiptychError: it does not load without unpickling, or does not answer.
    """
    script = Path(__file__).with_name("probe.py")
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                [sys.executable, "-I", str(script), str(package)],
                env=environment,
                cwd=folder,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise DiptychError(f"it did not load and answer within {PATIENCE} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DiptychError(lines[-1])
    # What a package says for itself, or a library of its, may stand before and after.
    answers = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if not answers:
        raise DiptychError("it ended without an answer")
    return dict(json.loads(answers[-1].removeprefix(ANSWER)))


def _package(
    model: RegisteredModel, version: Version, folder: Path, checks: list[Check], unfetched: bool
) -> Path | None:
    """The downloaded package, if it is what was registered."""
    name = f"version {version.version} is what was registered"
    folder.mkdir()
    try:
        found = model.download(version, folder)
    except FetchError as error:
        # What may be otherwise in an hour is no decision, unless a person wants one.
        if not unfetched:
            raise DiptychError(
                f"{error} Run again when the artifact store answers; if the package is gone for good, `diptych "
                "rollback` goes back to an earlier champion, and `diptych promote --force --reason TEXT` does without."
            ) from None
        checks.append(Check(name, False, str(error)))
        return None
    except DiptychError as error:
        checks.append(Check(name, False, str(error)))
        return None
    checks.append(Check(name, True, f"weights {version.tags['weights_sha256'][:12]}"))
    return found


def _measured(
    package: Path, workspace: Workspace, params: Params, version: Version, checks: list[Check]
) -> Measured | None:
    try:
        return measure(model_folder(package), workspace, params, f"version {version.version}")
    except DiptychError as error:
        checks.append(Check(f"version {version.version} can be measured", False, str(error)))
        return None


def _validation(model: RegisteredModel, version: Version) -> Check:
    """Whether the data that it was trained on kept all its promises."""
    name = "its data kept its promises"
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = model.client.download_artifacts(version.run_id, "reports/validation.json", folder)
            expectations = json.loads(Path(path).read_text(encoding="utf-8"))["expectations"]
            broken = [
                f"{one['table']}: {one['expectation']} ({one.get('column') or 'table'})"
                for one in expectations
                if not one["success"]
            ]
            if not expectations:
                raise ValueError("it has no expectations")
        except Exception as error:  # of the network, the store or the file
            return Check(name, False, f"its validation report is missing or damaged ({reason(error, model.uri)})")
    return Check(name, not broken, "; ".join(broken[:3]) or f"{len(expectations)} expectations hold")


def _answers(package: Path, gate: Gate) -> Check:
    name = f"it loads in a clean process and answers within {gate.latency_ms:g} ms"
    try:
        found = answer_time(package)
    except DiptychError as error:
        return Check(name, False, str(error))
    said = f"{found['pair_ms']:.0f} ms a pair, loaded in {found['load_s']:.1f} s"
    return Check(name, found["pair_ms"] <= gate.latency_ms, said)


def _floors(measured: Measured, on: Gallery, gate: Gate) -> list[Check]:
    metrics = measured.metrics["reranked"]
    own = list(_own_floors(metrics, gate))
    if not gate.better_than_chance:
        return own
    chance = chance_metrics(on.image_of_caption, on.images)["rsum"]
    low = interval(bootstrap({"it": measured.ranks}, on.image_of_caption)["it"])["low"]["rsum"]
    found = f"RSUM {metrics['rsum']:.1f}, surely above {low:.1f}; by chance {chance:.1f}"
    return [Check("it is better than chance", low > chance, found), *own]


def _own_floors(metrics: Metrics, gate: Gate) -> Iterator[Check]:
    for key, floor in gate.floors.items():
        way, _, figure = key.rpartition("/")
        value = metrics[way][figure] if way else metrics[figure]
        yield Check(f"{key} is at least {floor:g}", value >= floor, f"{value:.1f}")


def _guarded(on: Gallery, gate: Gate) -> list[Part]:
    """The parts that must not lose.

    Raises:
        DiptychError: params.yaml names an attribute that the queries are not parted by.
    """
    known = {part.attribute for part in on.parts}
    if unknown := [name for name in gate.guarded or [] if name not in known]:
        there = ", ".join(sorted(known)) or "none"
        raise DiptychError(f"params.yaml: gate.guarded: the report has no slices by {unknown[0]!r}; it has {there}.")
    return [part for part in on.parts if gate.guarded is None or part.attribute in gate.guarded]


def _losses(comparison: Comparison, gate: Gate) -> list[Check]:
    gain = comparison.rsum
    said = f"{gain.rsum:+.1f} ({gain.low:+.1f} to {gain.high:+.1f})"
    lost = [part for part in comparison.parts if part.high < -gate.slice_margin]
    parts = "; ".join(
        f"{part.attribute} {part.label}, {part.way}: {part.before:.1f} → {part.after:.1f}" for part in lost[:3]
    )
    return [
        Check(
            f"its RSUM is not {gate.rsum_margin:g} or more below the champion's", gain.low >= -gate.rsum_margin, said
        ),
        Check(
            f"in no part of the queries recall@10 surely loses more than {gate.slice_margin:g}",
            not lost,
            parts or f"none of {len(comparison.parts)} parts",
        ),
    ]
