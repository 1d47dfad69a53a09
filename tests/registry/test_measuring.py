"""Every model is measured by the same evaluation, on the same queries, with its own preprocessing."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import PREPROCESSING, RERANKING, make_querybank, model_settings

from diptych.config import Gate, Params, Preprocess, Splits
from diptych.data import preparing
from diptych.data.captions import Dataset, write_dataset
from diptych.data.prepared import Prepared
from diptych.data.preparing import prepare_captions, prepare_images
from diptych.data.shards import ShardWriter
from diptych.data.tokenization import learn_tokenizer, save_tokenizer, vocabulary_facts
from diptych.errors import DiptychError
from diptych.model.dual_encoder import build_model
from diptych.model.package import Preprocessing, load_model, save_model
from diptych.project.dataset import folder_md5
from diptych.project.workspace import Workspace
from diptych.registry import measuring
from diptych.registry.guard_sets import GuardGallery, open_guard_sets
from diptych.registry.measuring import gallery, measure
from diptych.retrieval.embedding import embed_split
from diptych.retrieval.evaluation import evaluate_gallery
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.reranking import Directed, Weights
from diptych.validation.scan import scan_images

PARAMS = Params.model_validate({"threads": 1, "device": "cpu", "preprocess": {"image_size": 32, "max_tokens": 16}})
IMAGES = {"train": 3, "test": 14}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory, photo) -> Workspace:
    """A small dataset of pictures, prepared at 32 pixels, with a tokenizer of its captions; tests only look at it."""
    workspace = Workspace(tmp_path_factory.mktemp("measuring"))
    dataset = Dataset()
    splits = [split for split, count in IMAGES.items() for _ in range(count)]
    with ShardWriter(workspace.data) as shards:
        for number, split in enumerate(splits, start=1):
            name = f"{number:012d}.png"
            shards.add(name, photo(number, size=(64 + number % 3, 48)))
            dataset.images.append({"id": number, "file_name": name, "split": split, "source": name})
            for text in (f"a picture of thing {number}", "something colourful")[: 1 + number % 2]:
                dataset.annotations.append({"id": len(dataset.annotations) + 1, "image_id": number, "caption": text})
    write_dataset(workspace.data, dataset)
    workspace.artifacts.mkdir()
    scanned = scan_images(workspace.data, dataset.images, max_pixels=10**6, workers=1)
    scanned.to_parquet(workspace.manifest)
    captions = pd.DataFrame(dataset.annotations).rename(columns={"id": "caption_id"})
    captions[["caption_id", "image_id", "caption"]].to_parquet(workspace.captions)
    save_tokenizer(learn_tokenizer(captions["caption"].tolist() * 5, 200), workspace.tokenizer, 16)
    prepare(workspace, workspace.prepared, workspace.tokenizer, PARAMS.preprocess)
    return workspace


def prepare(workspace: Workspace, folder: Path, tokenizer: Path, settings: Preprocess) -> None:
    """As the preprocess stage does."""
    manifest = pd.read_parquet(workspace.manifest)
    folder.mkdir()
    cache = workspace.root / "cache"
    prepare_images(workspace.data, manifest, folder, cache=cache, settings=settings, workers=1)
    shutil.copy(workspace.captions, folder / "captions.parquet")
    prepare_captions(folder, tokenizer=tokenizer, settings=settings)


def make_model(folder: Path, tokenizer: Path, preprocessing: Preprocessing) -> Path:
    """A model folder as training writes it."""
    torch.manual_seed(0)
    model = build_model(model_settings(), preprocessing.image_size, vocabulary_facts(tokenizer)[0], 0.07).eval()
    save_model(folder, model, model_settings(), tokenizer, preprocessing, RERANKING, make_querybank())
    return folder


def directly(model: Path, prepared: Path):
    """By the evaluation itself, on a split that was prepared for this model."""
    loaded, split = load_model(model), Prepared(prepared, Splits()).split("test")
    device = torch.device("cpu")
    embedded = embed_split(loaded.model, split, batch_size=64, device=device)
    weights = Directed(*(Weights(own.itm, own.alignment) for own in (RERANKING.i2t, RERANKING.t2i)))
    top_k = PARAMS.evaluate.top_k
    return evaluate_gallery(
        loaded.model,
        embedded.biased(loaded.querybank, loaded.model.logit_scale.item()),
        top_k=top_k,
        weights=weights,
        device=device,
    )


def test_a_model_of_todays_preprocessing_is_measured_on_what_is_prepared(workspace, tmp_path, monkeypatch):
    model = make_model(tmp_path / "model", workspace.tokenizer, PREPROCESSING)
    monkeypatch.setattr(measuring, "prepare_images", lambda *_, **__: pytest.fail("prepared anew"))

    found = measure(model, workspace, PARAMS, "version 1")

    expected = directly(model, workspace.prepared)
    assert found.metrics == expected.metrics
    for one, other in zip(found.ranks, expected.ranks["reranked"], strict=True):
        np.testing.assert_array_equal(one.rank, other.rank)


@pytest.mark.parametrize(
    "changed",
    [{"image_size": 48}, {"resize": "crop"}, {"max_tokens": 6}, {}],
    ids=["size", "resize", "tokens", "words"],
)
def test_a_model_of_other_preprocessing_is_measured_as_on_a_split_prepared_for_it(workspace, tmp_path, changed):
    tokenizer = workspace.tokenizer
    if not changed:
        tokenizer = tmp_path / "tokenizer"
        save_tokenizer(learn_tokenizer(["a stranger picture", "of something"] * 5, 150), tokenizer, 16)
    preprocessing = PREPROCESSING.model_copy(update=changed)
    model = make_model(tmp_path / "model", tokenizer, preprocessing)
    settings = PARAMS.preprocess.model_copy(update=preprocessing.model_dump())
    prepare(workspace, tmp_path / "prepared", tokenizer, settings)

    found = measure(model, workspace, PARAMS, "version 1")

    assert found.metrics == directly(model, tmp_path / "prepared").metrics
    if changed and "image_size" not in changed:
        assert found.metrics != directly(model, workspace.prepared).metrics
    assert len(found.ranks.i2t.rank) == IMAGES["test"]
    assert not list(workspace.local.glob("measuring-*"))


@pytest.fixture(scope="module")
def guard_sets(workspace) -> list[GuardGallery]:
    """The images of the test split, as two sets."""
    images = {"path": str(workspace.data), "md5": folder_md5(workspace.data), "split": "test"}
    gate = Gate.model_validate({"guard_sets": {"all": images, "again": images}})
    return open_guard_sets(workspace, PARAMS.model_copy(update={"gate": gate}))


@pytest.mark.parametrize("changed", [{}, {"image_size": 48}, {"max_tokens": 6}], ids=["today's", "size", "tokens"])
def test_a_guard_set_is_measured_as_a_test_split_of_the_same_images(workspace, guard_sets, tmp_path, changed):
    model = make_model(tmp_path / "model", workspace.tokenizer, PREPROCESSING.model_copy(update=changed))

    found = measure(model, workspace, PARAMS, "version 1", guard_sets)

    assert list(found.guard_ranks) == ["all", "again"]
    for ranks in found.guard_ranks.values():
        for one, other in zip(ranks, found.ranks, strict=True):
            np.testing.assert_array_equal(one.rank, other.rank)
    assert not list(workspace.local.glob("measuring-*"))


def test_the_pixels_of_a_guard_set_are_prepared_once_for_all_models_of_the_same_preprocessing(
    workspace, guard_sets, tmp_path, monkeypatch
):
    model = make_model(tmp_path / "model", workspace.tokenizer, PREPROCESSING)
    first = measure(model, workspace, PARAMS, "version 1", guard_sets)
    monkeypatch.setattr(preparing, "_fill", lambda *_: pytest.fail("prepared anew"))

    second = measure(model, workspace, PARAMS, "version 2", guard_sets)

    assert metrics_from_ranks(*second.guard_ranks["all"]) == metrics_from_ranks(*first.guard_ranks["all"])


def test_the_gallery_is_the_test_split_with_its_parts(workspace):
    on = gallery(workspace, PARAMS)

    assert (on.images, on.image_of_caption.max() + 1) == (IMAGES["test"], IMAGES["test"])
    assert {len(part.queries) for part in on.parts} <= {on.images, len(on.image_of_caption)}
    assert on.parts


@pytest.fixture
def own(workspace, tmp_path) -> Workspace:
    """A copy to change."""
    return Workspace(shutil.copytree(workspace.root, tmp_path / "own"))


def test_what_was_validated_after_it_was_prepared_is_not_measured_on(own):
    images = pd.read_parquet(own.manifest)
    images.iloc[[*range(len(images)), -1]].assign(image_id=range(1, len(images) + 2)).to_parquet(own.manifest)

    with pytest.raises(DiptychError, match=r"prepared is of another dataset than .*manifest\.parquet\. Run `dvc repro"):
        gallery(own, PARAMS)


def test_other_captions_than_those_that_were_prepared_are_not_measured_on(own):
    captions = pd.read_parquet(own.captions)
    captions.assign(caption=captions["caption"] + "!").to_parquet(own.captions)

    with pytest.raises(DiptychError, match="is of another dataset than"):
        gallery(own, PARAMS)


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("prepared", "There is nothing to measure a model on: .*Run `dvc repro preprocess`"),
        ("manifest", r"manifest\.parquet is missing or damaged"),
        ("captions", r"captions\.parquet is missing or damaged"),
    ],
)
def test_what_is_missing_is_an_error_that_says_what_to_do(own, gone, said):
    path = getattr(own, gone)
    shutil.rmtree(path) if path.is_dir() else path.unlink()

    with pytest.raises(DiptychError, match=said):
        gallery(own, PARAMS)


def test_without_the_tokenizer_of_today_a_model_is_not_measured(own, tmp_path):
    model = make_model(tmp_path / "model", own.tokenizer, PREPROCESSING)
    shutil.rmtree(own.tokenizer)

    with pytest.raises(DiptychError, match=r"There is nothing to measure a model on: .*Run `dvc"):
        measure(model, own, PARAMS, "version 1")


def test_a_folder_that_holds_no_model_is_not_measured(workspace, tmp_path):
    with pytest.raises(DiptychError, match="does not hold a whole model"):
        measure(tmp_path, workspace, PARAMS, "version 1")


def test_a_split_that_nothing_has_is_named(workspace):
    params = PARAMS.model_copy(update={"data": PARAMS.data.model_copy(update={"splits": Splits(test="exam")})})

    with pytest.raises(DiptychError, match="no captioned images in split 'exam'"):
        gallery(workspace, params)
