"""The train stage: from prepared data to artifacts/model and reports/training.csv."""

from __future__ import annotations

import itertools
import logging
import math
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

import diptych
from diptych.config import Params
from diptych.data.prepared import Prepared
from diptych.files import file_sha256, sources_sha256, write_csv
from diptych.model.device import choose_precision, prepare
from diptych.model.dual_encoder import DualEncoder, build_model
from diptych.model.package import FusionWeights, Preprocessing, Reranking, save_model, weights_sha256
from diptych.progress import is_first_process
from diptych.project.workspace import Workspace
from diptych.registry.tracking import TrackedRun
from diptych.training.checkpoints import Checkpoints
from diptych.training.features import FeatureCache
from diptych.training.finishing import finish
from diptych.training.launching import process_count
from diptych.training.loop import Position, Setup, Trainer

log = logging.getLogger(__name__)


def run(workspace: Workspace, params: Params) -> None:
    """Train the model of params.yaml, or continue an interrupted training.

    Raises:
        DiptychError: the data or the towers are missing, or training cannot continue.
    """
    started = time.perf_counter()
    device = prepare(params.device, params.threads)
    precision = choose_precision(params.train.precision, device)
    _fix_arithmetic(device)
    prepared = Prepared(workspace.prepared, params.data.splits)
    model = _build(params, prepared)
    # Several processes share a checkpoint, and may have different numbers of threads.
    threads = torch.get_num_threads() if process_count() == 1 else params.threads
    depends_on = identity(workspace, params, model, {"threads": threads, "precision": precision})
    checkpoints = Checkpoints(workspace.local / "checkpoints", depends_on)
    # The first of several processes records.
    with TrackedRun(workspace, params) if is_first_process() else nullcontext() as tracked:
        if tracked:
            tracked.log_params(params.model_dump(by_alias=True))
        limit = params.train.features_gib
        setup = Setup(
            seed=params.seed,
            evaluation_batch=params.evaluate.batch_size,
            checkpoints=checkpoints,
            report=tracked.log_metrics if tracked else lambda *_: None,
            device=device,
            features=FeatureCache(workspace.features, limit_gib=limit, device=device, precision=precision),
        )
        trainer = Trainer(model, prepared.split("train"), prepared.split("val"), params.train, setup)
        position = trainer.run()
        if not tracked:
            return
        _write_history(workspace.reports / "training.csv", position.history)
        _save(workspace, params, trainer, prepared.settings)
        weights = weights_sha256(workspace.model)
        tracked.finish({"weights_sha256": weights, "best_epoch": str(position.best_epoch)})
    # Last: a kill before it costs no training, which the next run finds finished.
    checkpoints.discard()
    _log_summary(prepared, position, weights, time.perf_counter() - started)


def _build(params: Params, prepared: Prepared) -> DualEncoder:
    torch.manual_seed(params.seed)
    size, vocabulary = prepared.settings["image_size"], prepared.settings["vocabulary_size"]
    return build_model(params.model, size, vocabulary, params.train.temperature)


def _log_summary(prepared: Prepared, position: Position, weights: str, seconds: float) -> None:
    train, best = prepared.split("train"), position.history[position.best_epoch - 1]
    log.info(
        "Trained on %d images with %d captions in %.0f s: val RSUM %.1f by the towers of epoch %d of %d, the best; "
        "weights %s.",
        len(train),
        len(train.captions),
        seconds,
        best["val_rsum"],
        position.best_epoch,
        len(position.history),
        weights[:12],
    )


def _fix_arithmetic(device: torch.device) -> None:
    # Some GPU kernels have no deterministic form; all CPU kernels in use have one.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    # Matrix products in float32 use TF32 where a GPU has it.
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")


def _save(workspace: Workspace, params: Params, trainer: Trainer, prepared: dict[str, Any]) -> None:
    """Write the model with its query bank and what was chosen on val."""
    querybank, weights, _, calibration = finish(trainer, params)
    i2t, t2i = (FusionWeights(**own._asdict()) for own in weights)
    save_model(
        workspace.model,
        trainer.model,
        params.model,
        workspace.tokenizer,
        Preprocessing(**{name: prepared[name] for name in ("image_size", "resize", "max_tokens")}),
        Reranking(top_k=params.evaluate.top_k, i2t=i2t, t2i=t2i, bias_strength=querybank.strength),
        querybank,
        calibration,
    )


def identity(workspace: Workspace, params: Params, model: DualEncoder, computing: dict[str, Any]) -> dict[str, Any]:
    """Return all that the weights depend on. A training continues from a checkpoint only where all of it is equal."""
    files = ("settings.json", "images.parquet", "captions.parquet", "tokens.npy")
    return {
        "params": params.model_dump(include={"seed", "data", "model", "train"}),
        **computing,
        "towers": [tower.features_sha256() for tower in (model.image_tower, model.text_tower)],
        "processes": process_count(),
        "torch": torch.__version__,
        "data": {name: file_sha256(workspace.prepared / name) for name in files},
        "code": sources_sha256(Path(diptych.__file__).parent, ("data", "model", "retrieval", "training")),
    }


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    names = list(dict.fromkeys(itertools.chain(*history)))
    rows = ([row.get(name, math.nan) for name in names] for row in history)
    write_csv(path, names, ([None if math.isnan(value) else f"{value:.6g}" for value in row] for row in rows))
