"""Profiles: what they are of, and that they come back as they were."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from dropping import make_photo
from tiny_model import write_tiny_model

from diptych.config import Params
from diptych.data.accepted import Accepted, read_accepted
from diptych.data.captions import read_dataset
from diptych.data.shards import list_members
from diptych.drift import profile as profiles
from diptych.drift.pairs import embed_pairs
from diptych.drift.profile import Profile, added_captions, gone_images, make_profile, new_images
from diptych.errors import DiptychError
from diptych.model.package import weights_sha256
from diptych.project.workspace import Workspace

PARAMS = Params.model_validate({"threads": 1, "device": "cpu"})


def write_tables(workspace: Workspace) -> None:
    """What validate makes of a dataset in which nothing is bad."""
    dataset = read_dataset(workspace.data)
    members = {member.name: member for member in list_members(workspace.data)}
    rows = []
    for record in dataset.images:
        member = members[record["file_name"]]
        sha256 = record.get("sha256", f"{record['id'] * 2654435761 % 2**32:08x}" + "0" * 56)
        rows.append(
            {"image_id": record["id"], "split": record["split"], "file_name": member.name, "shard": member.shard}
            | {"offset": member.offset, "bytes": member.size, "width": 64, "height": 48, "sha256": sha256}
        )
    workspace.artifacts.mkdir(exist_ok=True)
    pd.DataFrame(rows).to_parquet(workspace.manifest)
    texts = [(one["id"], one["image_id"], one["caption"]) for one in dataset.annotations]
    pd.DataFrame(texts, columns=["caption_id", "image_id", "caption"]).to_parquet(workspace.captions)


def accepted(workspace: Workspace) -> Accepted:
    return read_accepted(workspace.data, workspace.manifest, workspace.captions)


@pytest.fixture
def workspace(tmp_path, make_dataset):
    """Twelve images, eight of them in train."""
    make_dataset([(("train", "val", "train")[seed % 3], make_photo(seed)) for seed in range(12)])
    workspace = Workspace(tmp_path)
    write_tables(workspace)
    return workspace


def test_it_is_of_train(workspace):
    profile = make_profile(accepted(workspace), PARAMS)

    assert (profile.images, profile.captions) == (8, 16)
    assert {name: sketch.count for name, sketch in profile.statistics.items()} == dict.fromkeys(
        ["brightness", "contrast", "saturation", "width", "height", "words a caption"], 8
    )
    assert (profile.statistics["width"].median, profile.statistics["height"].median) == (64, 48)
    assert profile.embedded is None


def test_it_is_of_chosen_images(workspace):
    profile = make_profile(accepted(workspace), PARAMS, images=[2, 3])

    assert (profile.images, profile.captions) == (2, 4)
    assert profile.words["thing"] == 2


def test_it_is_of_no_images(workspace, tmp_path):
    write_tiny_model(tmp_path / "model")
    profile = make_profile(accepted(workspace), PARAMS, images=[], model=tmp_path / "model")

    assert (profile.images, profile.word_count, profile.embedded) == (0, 0, None)


def test_images_held_out_of_train_are_left_out(workspace):
    splits = {"train": "train", "val": None, "test": "val", "held_out": 0.5}
    params = Params.model_validate({"threads": 1, "data": {"splits": splits}})
    manifest = pd.read_parquet(workspace.manifest)
    kept = ~manifest["sha256"].map(params.data.splits.is_held_out).astype(bool) & (manifest["split"] == "train")

    assert 0 < make_profile(accepted(workspace), params).images == kept.sum() < 8


def test_unknown_words_are_those_that_one_image_alone_has(workspace):
    captions = pd.read_parquet(workspace.captions)
    captions["caption"] = "a dog"
    captions.loc[0, "caption"] = "A zebra, zebra!"
    captions.to_parquet(workspace.captions)

    profile = make_profile(accepted(workspace), PARAMS)

    assert profile.words == {"a": 16, "dog": 15, "zebra": 2}
    assert profile.unknown_words == pytest.approx(2 / 33)


def test_unknown_words_are_those_of_leaving_out_each_image_in_turn():
    """The slow twin of the count."""
    generator = np.random.default_rng(0)
    images = np.repeat(np.arange(40), 2).tolist()
    captions = [[f"w{min(word, 60)}" for word in generator.geometric(0.05, 5)] for _ in images]
    unknown = 0
    for left_out in range(40):
        rest = {word for image, words in zip(images, captions, strict=True) if image != left_out for word in words}
        mine = [word for image, words in zip(images, captions, strict=True) if image == left_out for word in words]
        unknown += sum(word not in rest for word in mine)

    counts, total, share = profiles.vocabulary(images, captions)

    assert counts
    assert total == 400
    assert share == pytest.approx(unknown / 400)


def test_of_words_the_most_frequent_are_kept(workspace, monkeypatch):
    monkeypatch.setattr(profiles, "VOCABULARY", 3)
    profile = make_profile(accepted(workspace), PARAMS)

    assert list(profile.words) == ["a", "colourful", "of"]
    assert profile.word_count > sum(profile.words.values())


def test_new_images_are_those_of_train_with_other_content(workspace):
    manifest = pd.read_parquet(workspace.manifest)
    reference = make_profile(accepted(workspace), PARAMS, images=manifest["image_id"][:6].tolist())

    assert new_images(accepted(workspace), PARAMS, reference) == [7, 9, 10, 12]


def test_gone_images_are_those_of_the_reference_that_are_not_in_train(workspace):
    manifest = pd.read_parquet(workspace.manifest)
    reference = make_profile(accepted(workspace), PARAMS)
    assert gone_images(accepted(workspace), PARAMS, reference) == 0

    manifest[manifest["image_id"] != 7].to_parquet(workspace.manifest)

    assert gone_images(accepted(workspace), PARAMS, reference) == 1


def test_added_captions_are_those_of_train_beyond_the_number_of_the_reference(workspace):
    manifest = pd.read_parquet(workspace.manifest)
    reference = make_profile(accepted(workspace), PARAMS)
    assert added_captions(accepted(workspace), PARAMS, reference) == 0

    captions = pd.read_parquet(workspace.captions)
    train, val = (manifest.loc[manifest["split"] == split, "image_id"].iloc[0] for split in ("train", "val"))
    more = pd.DataFrame({"caption_id": [90, 91, 92], "image_id": [train, train, val], "caption": "a dog"})
    pd.concat([captions, more]).to_parquet(workspace.captions)

    assert added_captions(accepted(workspace), PARAMS, reference) == 2


def test_the_pairs_of_val_are_embedded_as_the_model_does(workspace, tmp_path):
    write_tiny_model(tmp_path / "model")

    profile = make_profile(accepted(workspace), PARAMS, model=tmp_path / "model")

    manifest = pd.read_parquet(workspace.manifest)
    val = manifest[manifest["split"] == "val"].sort_values("sha256")
    captions = [f"a picture of thing {image_id}" for image_id in val["image_id"]]
    expected = embed_pairs(workspace.data, val, captions, tmp_path / "model", "cpu")
    assert profile.embedded
    assert profile.embedded.weights_sha256 == weights_sha256(tmp_path / "model")
    assert profile.embedded.pairs == pytest.approx(expected)
    assert np.linalg.norm(expected.astype(float), axis=1) == pytest.approx(np.full(4, 2**0.5), abs=0.01)


def test_it_comes_back_from_json(workspace, tmp_path):
    write_tiny_model(tmp_path / "model")
    profile = make_profile(accepted(workspace), PARAMS, model=tmp_path / "model")

    content = json.loads(json.dumps(profile.to_json(), allow_nan=False))

    assert Profile.from_json(content).to_json() == content
    assert make_profile(accepted(workspace), PARAMS, model=tmp_path / "model").to_json() == content


@pytest.mark.parametrize("content", [{}, [], None, {"format": 2}, {"format": 1, "images": 3}])
def test_something_else_is_no_profile(content):
    with pytest.raises(ValueError, match=r"profile|format"):
        Profile.from_json(content)


def test_before_validation_it_says_what_to_run(tmp_path):
    with pytest.raises(DiptychError, match="dvc repro validate"):
        make_profile(accepted(Workspace(tmp_path)), PARAMS)
