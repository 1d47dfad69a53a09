"""The baselines stage on a small prepared dataset."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import model_settings, train_settings, write_prepared
from torch.nn.functional import normalize

from diptych.config import Params
from diptych.data.inputs import Inputs
from diptych.data.prepared import Prepared
from diptych.model.dual_encoder import build_model
from diptych.project.workspace import Workspace
from diptych.retrieval.baselines import Fit, smoothed_baselines
from diptych.retrieval.stored_ranks import load_ranks
from diptych.stages import baselines
from diptych.training.features import FeatureCache

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def _prepared(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("prepared") / "workspace")
    write_prepared(made.prepared)
    (made.prepared / "tokenizer").rename(made.tokenizer)
    made.local.mkdir()
    return made


@pytest.fixture
def workspace(_prepared: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(shutil.copytree(_prepared.root, tmp_path / "workspace"))


@pytest.fixture(scope="module")
def ranked(_prepared: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project with all baselines, to be looked at."""
    made = Workspace(shutil.copytree(_prepared.root, tmp_path_factory.mktemp("ranked") / "workspace"))
    baselines.run(made, params())
    return made


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def params(keep_features: str = "auto", **changes: object) -> Params:
    train = train_settings(
        keep_features=keep_features, image_tower={"frozen_epochs": 1}, text_tower={"frozen_epochs": 1}
    )
    return Params(**{"model": model_settings(), "train": train, "threads": 1, "device": "cpu", **changes})  # type: ignore[arg-type]


def test_every_baseline_ranks_all_queries_of_test(ranked: Workspace) -> None:
    test = Prepared(ranked.prepared, params().data.splits).split("test")
    ranks = load_ranks(ranked.baselines, len(test), len(test.captions))
    assert list(ranks) == params().baselines.methods


def test_a_second_run_gives_the_same_bytes_from_stored_features(ranked: Workspace, tmp_path: Path) -> None:
    workspace = Workspace(shutil.copytree(ranked.root, tmp_path / "workspace"))
    before = workspace.baselines.read_bytes()
    stored = set((workspace.local / "cache" / "features").iterdir())
    baselines.run(workspace, params())
    assert workspace.baselines.read_bytes() == before
    assert set((workspace.local / "cache" / "features").iterdir()) == stored


def test_the_heads_have_the_label_smoothing_of_the_training(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def recorded(smoothing: float) -> dict[str, Fit]:
        seen.append(smoothing)
        return smoothed_baselines(smoothing)

    monkeypatch.setattr(baselines, "smoothed_baselines", recorded)
    settings = params(baselines={"methods": ["prior"]})
    smoothed = settings.train.objectives.model_copy(update={"label_smoothing": 0.4})
    train = settings.train.model_copy(update={"objectives": smoothed})
    baselines.run(workspace, settings.model_copy(update={"train": train}))
    assert seen == [0.4]


def test_without_methods_nothing_is_computed(workspace: Workspace) -> None:
    baselines.run(workspace, params(baselines={"methods": []}))
    assert load_ranks(workspace.baselines, 1, 1) == {}
    assert not (workspace.local / "cache").exists()


@pytest.mark.parametrize("keep_features", ["auto", "never"])
def test_pooled_features_are_the_mean_tokens_of_the_frozen_towers(workspace: Workspace, keep_features: str) -> None:
    settings = params(keep_features)
    prepared = Prepared(workspace.prepared, settings.data.splits)
    split = prepared.split("val")
    torch.manual_seed(settings.seed)
    model = build_model(settings.model, 32, prepared.settings["vocabulary_size"], 0.07).eval()
    cache = None
    if keep_features == "auto":
        cache = FeatureCache(workspace.local / "f", limit_gib=1.0, device=torch.device("cpu"), precision="no")
    towers = baselines.FrozenTowers(
        model, image_cache=cache, text_cache=cache, batch_size=3, device=torch.device("cpu"), precision="no"
    )
    (pooled,) = towers.pooled([split])
    with torch.inference_mode():
        for image in range(len(split)):
            tokens = model.image_tower.features(torch.from_numpy(split.pixels(np.array([image]))))
            torch.testing.assert_close(
                pooled.image[image], normalize(tokens[0].mean(dim=0), dim=0), rtol=2e-3, atol=2e-3
            )
        for caption in range(len(split.captions)):
            ids, mask = Inputs(split).texts(np.array([caption]))
            states = model.text_tower.features(ids, mask)[0, :, -1]
            torch.testing.assert_close(pooled.text[caption], normalize(states.mean(dim=0), dim=0), rtol=2e-3, atol=2e-3)
