"""The inbox of a project in which the chain has run: real validation, real DVC, embedded scenes, a trained model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dropping import photos, write_drop
from pipeline_clone import Clone

TAKE = """
import json
from dataclasses import asdict
from diptych.data.accepted import read_accepted
from diptych.project.params import read_params
from diptych.project.environment import enter
from diptych.drift.distance import compare
from diptych.drift.profile import make_profile, new_images
from diptych.inbox.ingesting import ingest_drops
workspace = enter()
params = read_params(workspace)
paths = workspace.data, workspace.manifest, workspace.captions
reference = make_profile(read_accepted(*paths), params, model=workspace.model)
taken = ingest_drops(workspace, params, "inbox", lambda line: None)
accepted = read_accepted(*paths)
new = new_images(accepted, params, reference)
drift = compare(reference, make_profile(accepted, params, new, workspace.model), params)
print(json.dumps({"taken": [asdict(one) for one in taken], "new": new, "drift": drift.to_json()}))
"""


@pytest.mark.slow
def test_photographs_dropped_onto_scenes_are_taken_and_are_drift_and_a_broken_one_is_refused(
    chain: Clone, tmp_path: Path
) -> None:
    clone = chain.copy(tmp_path / "clone")
    write_drop(clone.root / "inbox" / "a-broken", [*photos(100, 101), ("cut.png", photos(102)[0][1][:-20], ["cut"])])
    write_drop(clone.root / "inbox" / "b-photos", photos(*range(40)), split="train")

    said = json.loads(clone.python("-c", TAKE).splitlines()[-1])

    refused, taken = said["taken"]
    assert (refused["name"], refused["outcome"]) == ("a-broken", "refused")
    assert "1 of its 3 new images" in refused["reason"]
    assert "cut.png: truncated" in refused["reason"]
    assert (taken["outcome"], taken["images"], taken["captions"]) == ("taken", 40, 80)
    assert len(said["new"]) == 40
    drifted = {one["name"] for one in said["drift"]["distances"] if one["drifted"]}
    assert {"width", "unknown words"} <= drifted
    changed = json.loads(clone.command("dvc", "status", "--json"))
    assert not {"data.dvc", "validate"} & set(changed)
