"""The controls stage on a small prepared dataset: each control is what its name says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    PREPROCESSING,
    RERANKING,
    make_model,
    make_querybank,
    model_settings,
    train_settings,
    write_prepared,
)

from diptych.config import Params
from diptych.data.inputs import Inputs
from diptych.data.prepared import Prepared
from diptych.model.package import FusionWeights, Reranking, load_model, save_model
from diptych.project.workspace import Workspace
from diptych.retrieval.embedding import embed_means, embed_split
from diptych.retrieval.ranking import Ranks
from diptych.retrieval.stored_ranks import load_ranks
from diptych.stages import controls, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_speed_test")]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


MLP = {"layers": 1, "heads": 2, "attention": False}


def params(**changes: object) -> Params:
    settings = train_settings(fusion_epochs=2, image_tower={"frozen_epochs": 1}, text_tower={"frozen_epochs": 1})
    given = {"model": model_settings(), "train": settings, "evaluate": {"top_k": 4}, "threads": 1, "device": "cpu"}
    return Params(**given | changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def trained(no_speed_test: None, mlflow_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("trained"))
    write_prepared(made.prepared, train=48, val=16, test=16)
    (made.prepared / "tokenizer").rename(made.tokenizer)
    keep_runs(made, mlflow_store)
    train.run(made, params())
    return made


def keep_runs(workspace: Workspace, store: Path) -> None:
    """Begin with a copy of an MLflow store, which takes seconds to make."""
    workspace.local.mkdir()
    (workspace.local / "mlflow.db").write_bytes(store.read_bytes())


def found(workspace: Workspace) -> dict[str, Ranks]:
    test = Prepared(workspace.prepared, params().data.splits).split("test")
    return load_ranks(workspace.controls, len(test), len(test.captions))


def test_every_control_ranks_all_queries_of_test(trained: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    controls.run(trained, params())
    assert list(found(trained)) == ["shuffled_images", "mlp_fusion"]
    # What the fusion's own epochs kept is found.
    kept = [record.getMessage() for record in caplog.records if "features of the frozen" in record.getMessage()]
    assert [" 0 of " in line for line in kept] == [True, True]


def test_twice_gives_the_same_bytes(trained: Workspace) -> None:
    controls.run(trained, params())
    before = trained.controls.read_bytes()
    controls.run(trained, params())
    assert trained.controls.read_bytes() == before


def test_features_that_are_not_kept_make_no_difference(trained: Workspace) -> None:
    controls.run(trained, params())
    with_features = found(trained)
    settings = params().train.model_copy(update={"keep_features": "never"})
    controls.run(trained, params(train=settings))
    assert set(found(trained)) == set(with_features)


def test_kept_features_are_found_where_only_top_layers_learned(
    tmp_path: Path, mlflow_store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = Workspace(tmp_path)
    write_prepared(made.prepared, train=24, val=8, test=8)
    (made.prepared / "tokenizer").rename(made.tokenizer)
    keep_runs(made, mlflow_store)
    layers = {"image_tower": {"top_layers": 1}, "text_tower": {"top_layers": 1}}
    settings = params(train=train_settings(fusion_epochs=1, **layers))
    train.run(made, settings)
    caplog.clear()
    caplog.set_level("INFO")
    controls.run(made, settings)
    kept = [record.getMessage() for record in caplog.records if "features of the frozen" in record.getMessage()]
    assert len(kept) == 4
    assert [" 0 of " in line for line in kept] == [True] * 4


def test_an_mlp_is_no_control_to_an_mlp(trained: Workspace, tmp_path: Path) -> None:
    made = Workspace(tmp_path)
    made.artifacts.mkdir()
    made.prepared.symlink_to(trained.prepared)
    settings = params(model=model_settings(fusion=MLP))
    vocabulary_size = Prepared(trained.prepared, settings.data.splits).settings["vocabulary_size"]
    untrained = make_model(vocabulary_size, fusion=MLP)
    save_model(made.model, untrained, settings.model, trained.tokenizer, PREPROCESSING, RERANKING, make_querybank())
    controls.run(made, settings)
    assert list(found(made)) == ["shuffled_images"]


def test_none_are_asked_for_or_the_fusion_does_not_learn(trained: Workspace) -> None:
    nothing_to_do: tuple[dict[str, Any], ...] = (
        {"baselines": {"controls": []}},
        {"train": train_settings(objectives={"itm": 0.0})},
    )
    for changes in nothing_to_do:
        controls.run(trained, params(**changes))
        assert found(trained) == {}


def test_of_a_fusion_without_weight_other_images_change_nothing(trained: Workspace, tmp_path: Path) -> None:
    loaded = load_model(trained.model)
    mute = Workspace(tmp_path)
    mute.artifacts.mkdir()
    mute.prepared.symlink_to(trained.prepared)
    none = FusionWeights(itm=0.0, alignment=0.0)
    save_model(
        mute.model,
        loaded.model,
        model_settings(),
        trained.tokenizer,
        PREPROCESSING,
        Reranking(top_k=4, i2t=none, t2i=none, bias_strength=0.5),
        make_querybank(),
    )
    settings = params(baselines={"controls": ["shuffled_images"]})
    controls.run(mute, settings)
    once = found(mute)["shuffled_images"]
    controls.run(mute, params(baselines={"controls": ["shuffled_images"]}, evaluate={"top_k": 1}))
    assert (found(mute)["shuffled_images"].i2t.rank == once.i2t.rank).all()


def test_means_are_those_of_the_tokens(trained: Workspace) -> None:
    model = load_model(trained.model).model
    split = Prepared(trained.prepared, params().data.splits).split("val")
    means = embed_means(model, Inputs(split), batch_size=5, device=torch.device("cpu"))
    embedded = embed_split(model, split, batch_size=7, device=torch.device("cpu"))
    torch.testing.assert_close(means.image, embedded.image)
    torch.testing.assert_close(means.text, embedded.text)
    torch.testing.assert_close(means.grid, embedded.grid.mean(dim=1))
    for caption in range(len(split.captions)):
        own = embedded.tokens[embedded.offsets[caption] : embedded.offsets[caption + 1]]
        torch.testing.assert_close(means.tokens[caption], own.mean(dim=0))
