"""The train stage: from prepared data to a model folder and a history, the same bits each time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from fake_project import keep_environment
from forked import Forks
from interrupting import forget_accelerator
from sharing import free_ports
from tiny import make_model, model_settings, train_settings, write_prepared

from diptych.config import Params
from diptych.data.prepared import Prepared
from diptych.errors import DiptychError
from diptych.model.package import FusionWeights, load_model, weights_sha256
from diptych.project.workspace import Workspace
from diptych.registry.connection import connect
from diptych.retrieval.choices import choose_strength, choose_weights
from diptych.retrieval.embedding import embed_split
from diptych.retrieval.reranking import Weights, candidate_logits
from diptych.stages import train
from diptych.training import finishing

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_speed_test")]


@pytest.fixture(scope="module")
def _untrained(tmp_path_factory: pytest.TempPathFactory, mlflow_store: Path) -> Workspace:
    made = Workspace(tmp_path_factory.mktemp("untrained") / "workspace")
    write_prepared(made.prepared)
    (made.prepared / "tokenizer").rename(made.tokenizer)
    made.local.mkdir()
    (made.local / "mlflow.db").write_bytes(mlflow_store.read_bytes())
    (made.root / "params.yaml").write_text("")
    return made


@pytest.fixture
def workspace(_untrained: Workspace, tmp_path: Path) -> Workspace:
    """A project that is to be trained."""
    return Workspace(shutil.copytree(_untrained.root, tmp_path / "workspace"))


@dataclass(frozen=True)
class Trained:
    """A project that was trained, to be looked at."""

    workspace: Workspace
    chosen: list[tuple[Any, tuple[Any, ...]]]
    """The bias strength and the weights, each with what it was chosen by."""


@pytest.fixture(scope="module")
def trained(_untrained: Workspace, no_speed_test: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    made = Trained(Workspace(shutil.copytree(_untrained.root, tmp_path_factory.mktemp("trained") / "workspace")), [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finishing, "choose_strength", spying(choose_strength, made.chosen))
        patch.setattr(finishing, "choose_weights", spying(choose_weights, made.chosen))
        keep_environment(patch)
        train.run(made.workspace, params())
    return made


@pytest.fixture(autouse=True)
def fresh_process():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
    forget_accelerator()


def params(**changes: Any) -> Params:
    settings: dict[str, Any] = {
        "model": model_settings(),
        "train": train_settings(),
        "threads": 1,
        "device": "cpu",
    } | changes
    return Params(**settings)


def test_it_leaves_a_model_and_a_row_an_epoch(trained: Trained) -> None:
    workspace = trained.workspace
    history = pd.read_csv(workspace.reports / "training.csv")
    assert history["epoch"].tolist() == [1, 2]
    assert {"loss", "contrastive", "itm", "learning_rate", "temperature", "val_rsum"} <= set(history.columns)
    loaded = load_model(workspace.model)
    expected = {"image_size": 32, "resize": "stretch", "max_tokens": 16}
    assert loaded.preprocessing.model_dump() == expected
    assert loaded.reranking.top_k == 32


def test_twice_gives_the_same_bytes_and_leaves_no_checkpoint(trained: Trained, tmp_path: Path) -> None:
    assert list((trained.workspace.local / "checkpoints").iterdir()) == []
    again = Workspace(shutil.copytree(trained.workspace.root, tmp_path / "again"))
    train.run(again, params())
    before, after = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (trained.workspace.model, again.model)
    )
    assert after == before
    assert list((again.local / "checkpoints").iterdir()) == []


def test_the_run_is_found_by_the_hash_of_its_weights(trained: Trained) -> None:
    workspace = trained.workspace
    client, experiment = connect(workspace, params())
    found = client.search_runs([experiment], f"tags.weights_sha256 = '{weights_sha256(workspace.model)}'")
    assert len(found) == 1
    assert found[0].data.params["train.epochs"] == "2"
    assert {"loss", "val_rsum", "images_per_second", "learning_rate"} <= set(found[0].data.metrics)


def test_without_matching_the_fusion_has_no_weight(workspace: Workspace) -> None:
    train.run(workspace, params(train=train_settings(objectives={"itm": 0.0})))
    reranking = load_model(workspace.model).reranking
    assert reranking.i2t == reranking.t2i == FusionWeights(itm=0.0, alignment=0.0)


@pytest.mark.parametrize(
    ("one", "other"),
    [({"seed": 1}, {"seed": 2}), ({"train": train_settings()}, {"train": train_settings(epochs=3)})],
)
def test_a_checkpoint_belongs_to_its_parameters(
    workspace: Workspace, one: dict[str, Any], other: dict[str, Any]
) -> None:
    model = make_model(300)
    first, second = (train.identity(workspace, params(**changes), model, {}) for changes in (one, other))
    assert first != second
    assert first == train.identity(workspace, params(**one), model, {})


def test_a_checkpoint_belongs_to_its_data(workspace: Workspace) -> None:
    model = make_model(300)
    before = train.identity(workspace, params(), model, {})
    tokens = workspace.prepared / "tokens.npy"
    content = bytearray(tokens.read_bytes())
    content[-1] ^= 1
    tokens.write_bytes(content)
    assert train.identity(workspace, params(), model, {}) != before


def test_missing_data_is_an_error_that_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="dvc repro preprocess"):
        train.run(Workspace(tmp_path), params())


@pytest.mark.parametrize("machines", [1, 2])
def test_several_processes_leave_one_model_and_one_run(
    workspace: Workspace, forks: Forks, tmp_path: Path, machines: int
) -> None:
    """Torchrun starts forks in the place of `python -u -m diptych`, which would all import what is imported.

    On two machines, which here are one, the same command is given on each.
    """
    (workspace.root / "dvc.yaml").write_text("")
    meeting = ["--standalone"] if machines == 1 else ["--nnodes=2", f"--rdzv-endpoint=127.0.0.1:{free_ports(1)[0]}"]
    launch = ["torchrun", *meeting, "--rdzv-backend=c10d", f"--nproc-per-node={2 // machines}"]
    settings = params(train=train_settings(launch=launch), threads=None)
    workspace.params.write_text(json.dumps(settings.model_dump(by_alias=True)))
    command = forks.command("diptych", "stage", "train")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "-u -m diptych" ] && shift 3 && exec {command[0]} "$@"\n')
    python.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("DIPTYCH", "DVC"))}
    environment |= {"PYTHON_EXEC": str(python), "GLOO_SOCKET_IFNAME": "lo"}
    started = [
        subprocess.Popen(command, cwd=workspace.root, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(machines)
    ]
    said = "".join(process.communicate()[1] for process in started)
    assert not any(process.returncode for process in started), said
    assert said.count("Trained on 32 images") == 1
    assert load_model(workspace.model).preprocessing.image_size == 32
    client, experiment = connect(workspace, settings)
    assert len(client.search_runs([experiment])) == 1


def test_bank_strength_and_weights_are_those_of_train_and_val(trained: Trained) -> None:
    """Done again, step by step, with the model that was saved."""
    workspace = trained.workspace
    loaded = load_model(workspace.model)
    model, prepared = loaded.model, Prepared(workspace.prepared, params().data.splits)
    seen, val = (
        embed_split(model, prepared.split(role), batch_size=64, device=torch.device("cpu")) for role in ("train", "val")
    )
    scale = model.logit_scale.item()
    assert torch.allclose(loaded.querybank.image.float(), seen.image, atol=2e-3)
    kept, expected = (bank.float().sort(dim=0).values for bank in (loaded.querybank.text, seen.text))
    assert torch.allclose(kept, expected, atol=2e-3)
    (strength, (embedded, bank, _)), (weights, (candidates, _)) = trained.chosen
    assert torch.allclose(embedded.image, val.image, atol=1e-5)
    assert loaded.reranking.bias_strength == strength == choose_strength(val, bank, scale)
    again = candidate_logits(model, val.biased(loaded.querybank, scale), 32, device=torch.device("cpu"))
    torch.testing.assert_close(candidates.i2t.scores(scale, Weights()), again.i2t.scores(scale, Weights()))
    assert weights == choose_weights(again, scale)
    assert [tuple(own.model_dump().values()) for own in (loaded.reranking.i2t, loaded.reranking.t2i)] == [*weights]


def spying(function: Callable[..., Any], seen: list[tuple[Any, tuple[Any, ...]]]) -> Callable[..., Any]:
    def called(*arguments: Any) -> Any:
        seen.append((function(*arguments), arguments))
        return seen[-1][0]

    return called
