"""The model card: the description of a version in MLflow, where people promote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.config import Params
from diptych.data.accepted import read_columns
from diptych.data.captions import read_dataset
from diptych.errors import DiptychError
from diptych.project.provenance import UNKNOWN
from diptych.project.workspace import Workspace
from diptych.retrieval.stages import STAGE_LABELS, shown

if TYPE_CHECKING:
    from diptych.registry.decision import Decision

_GATE = "\n\n## Gate\n\n"
_DIRECTIONS = {"i2t": "image to text", "t2i": "text to image"}
_LONGEST = 5_000
"""Characters of a description; PostgreSQL refuses a longer one."""
_SLICES = 5
"""Number of the worst slices that the card names."""


def model_card(workspace: Workspace, params: Params, name: str, number: str, tags: Mapping[str, str]) -> str:
    """Return Markdown of what a version is for, learned from and can do, and of how to use it.

    Args:
        workspace: the project, with the reports of this model.
        params: what it was trained with.
        name: name of the registered model.
        number: number of the version.
        tags: tags of the version.
    """
    sections = {
        "Use": _use(name, number),
        "Data": _data(workspace, params, tags),
        "Figures": _figures(workspace, params),
        "Weak points": _weak_points(workspace),
    }
    texts = {title: "\n".join(lines) for title, lines in sections.items()}
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in texts.items() if text)
    return _shortened(f"Finds the image for a sentence and the sentence for an image.\n\n{body}")


def with_decision(card: str, decision: Decision) -> str:
    """Return the card with the gate's last decision."""
    return _shortened(card.partition(_GATE)[0] + _GATE + decision.render().removeprefix("# "))


def _shortened(text: str) -> str:
    """Return a text that MLflow's databases take as a description."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 2] + " …"


def dataset_counts(workspace: Workspace) -> dict[str, int]:
    """Return the number of accepted images of each split; none where the manifest is not here."""
    if not workspace.manifest.exists():
        return {}
    columns = read_columns(workspace.manifest, "split", repair="Run `dvc repro validate`.")
    return dict(sorted(Counter(map(str, columns["split"])).items()))


def _use(name: str, number: str) -> list[str]:
    return [
        "```",
        f"diptych index {number} && diptych serve {number}    # search with it",
        f"diptych promote {number}                      # make it the champion, if the gate agrees",
        f"diptych reproduce {number}                    # make it again from its tags, and compare",
        f'Retriever.load("models:/{name}/{number}")     # from Python',
        "```",
    ]


def _data(workspace: Workspace, params: Params, tags: Mapping[str, str]) -> Iterator[str]:
    splits = params.data.splits
    counts = ", ".join(f"{split} {count:,}" for split, count in dataset_counts(workspace).items())
    yield f"Images by split: {counts or 'unknown'}. Trained on `{splits.train}`, reported on `{splits.test}`."
    yield f"Version of the dataset: `{tags.get('data_md5', UNKNOWN)}`; commit `{tags.get('git_sha', UNKNOWN)[:12]}`."
    towers = [tower.pretrained for tower in (params.model.image_tower, params.model.text_tower) if tower.pretrained]
    yield f"Pretrained towers: {', '.join(f'`{tower}`' for tower in towers)}." if towers else "Towers from scratch."
    yield f"Licences of the images: {_licences(workspace)}."


def _licences(workspace: Workspace) -> str:
    try:
        licences = read_dataset(workspace.data).licenses
    except DiptychError:
        return "unknown, since the dataset is not here"
    names = [str(licence["name"]) for licence in licences if isinstance(licence, dict) and licence.get("name")]
    return ", ".join(dict.fromkeys(names)) or "none are recorded in the dataset"


def _figures(workspace: Workspace, params: Params) -> Iterator[str]:
    metrics = shown(_read(workspace.reports, "metrics"), params)
    intervals = shown(_read(workspace.reports, "uncertainty").get("intervals", {}), params)
    yield f"On `{params.data.splits.test}`, in percent; RSUM with its 95 % interval."
    yield ""
    yield "| | RSUM | recall@1 image to text | recall@1 text to image |"
    yield "|---|---|---|---|"
    for stage, values in metrics.items():
        ends = intervals.get(stage, {})
        both = f" ({ends['low']['rsum']:.1f} to {ends['high']['rsum']:.1f})" if ends else ""
        recalls = " | ".join(f"{values[direction]['recall@1']:.1f}" for direction in ("i2t", "t2i"))
        yield f"| {STAGE_LABELS[stage]} | {values['rsum']:.1f}{both} | {recalls} |"
    yield ""
    for verdict in _read(workspace.reports, "ladder").get("verdicts", []):
        gain = verdict["gain"]
        yield (
            f"* {verdict['claim']}: **{verdict['answer']}**, by {gain['rsum']:+.1f} ({gain['low']:+.1f} to "
            f'{gain["high"]:+.1f}) over "{verdict["over"]}".'
        )
    if trust := _read(workspace.reports, "calibration"):
        good, weak = (trust[name]["share"] for name in ("precision", "weak_wrong"))
        if good is not None:
            yield f"* A first image that counts as a good match is right for {100 * good:.0f} % of captions."
        if weak is not None:
            yield f"* A first image that does not is wrong for {100 * weak:.0f} %."


def _weak_points(workspace: Workspace) -> list[str]:
    """Return the slices whose upper bound of recall@10 is below that of all queries, the worst first."""
    slices = [one for one in _read(workspace.reports, "failures").get("slices", []) if one["worse"]]
    slices.sort(key=lambda one: one["recalls"]["recall@10"][0])
    return [_slice_line(one) for one in slices[:_SLICES]]


def _slice_line(one: dict[str, Any]) -> str:
    recall, low, high = one["recalls"]["recall@10"]
    direction = _DIRECTIONS[one["direction"]]
    return f"* {direction}, {one['attribute']} {one['label']}: recall@10 {recall:.1f} ({low:.1f} to {high:.1f})"


def _read(reports: Path, name: str) -> dict[str, Any]:
    """Return a report of the evaluate stage; empty where it is missing."""
    path = reports / f"{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}
