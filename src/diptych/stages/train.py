"""The train stage: from prepared data to artifacts/model and reports/training.csv."""

from __future__ import annotations

import logging
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pandas as pd
import torch

import diptych
from diptych.config import Params
from diptych.data.prepared import Prepared
from diptych.files import atomic_path, file_sha256, sources_sha256
from diptych.model.device import Precision, choose_device, choose_precision, keep_freed_memory, set_threads
from diptych.model.dual_encoder import build_model
from diptych.model.package import Preprocessing, Reranking, save_model, weights_sha256
from diptych.progress import is_first_process
from diptych.project.workspace import Workspace
from diptych.registry.tracking import TrackedRun
from diptych.retrieval.embedding import embed_querybank, embed_split
from diptych.retrieval.reranking import Weights, candidate_logits, choose_strength, choose_weights
from diptych.training.checkpoints import Checkpoints
from diptych.training.features import FeatureCache
from diptych.training.launching import process_count
from diptych.training.loop import Trainer

log = logging.getLogger(__name__)


def run(workspace: Workspace, params: Params) -> None:
    """Trains the model of params.yaml, or goes on with a training that was interrupted.

    Raises:
        DiptychError: the data or the towers are not there, or training cannot go on.
    """
    started = time.perf_counter()
    threads = set_threads(params.threads)
    device = choose_device(params.device)
    precision = choose_precision(params.train.precision, device)
    _set_up(device)
    prepared = Prepared(workspace.prepared, params.data.splits)
    train, val = prepared.split("train"), prepared.split("val")
    torch.manual_seed(params.seed)
    size, vocabulary = prepared.settings["image_size"], prepared.settings["vocabulary_size"]
    model = build_model(params.model, size, vocabulary, params.train.temperature)
    towers = [tower.features_sha256() for tower in (model.image_tower, model.text_tower)]
    identity = {**_identity(workspace, params, threads), "precision": precision, "towers": towers}
    checkpoints = Checkpoints(workspace.local / "checkpoints", identity)
    cache, limit = workspace.local / "cache" / "features", params.train.features_gib
    # Of several processes that train together the first keeps the records.
    with TrackedRun(workspace, params) if is_first_process() else nullcontext() as tracked:
        if tracked:
            tracked.log_params(params.model_dump(by_alias=True))
        trainer = Trainer(
            model,
            train,
            val,
            params.train,
            seed=params.seed,
            evaluation_batch=params.evaluate.batch_size,
            checkpoints=checkpoints,
            report=tracked.log_metrics if tracked else _silent,
            device=device,
            features=FeatureCache(cache, limit_gib=limit, device=device, precision=precision),
        )
        position = trainer.run()
        if not tracked:
            return
        _write_history(workspace.reports / "training.csv", position.history)
        _save(workspace, params, trainer, prepared.settings, precision)
        checkpoints.discard()
        weights = weights_sha256(workspace.model)
        tracked.finish({"weights_sha256": weights, "best_epoch": str(position.best_epoch)})
    best = position.history[position.best_epoch - 1]
    log.info(
        "Trained on %d images with %d captions in %.0f s: val RSUM %.1f by the towers of epoch %d of %d, the best; "
        "weights %s.",
        len(train),
        len(train.captions),
        time.perf_counter() - started,
        best["val_rsum"],
        position.best_epoch,
        len(position.history),
        weights[:12],
    )


def _set_up(device: torch.device) -> None:
    """How torch computes here."""
    keep_freed_memory()
    # Some GPU kernels have no deterministic form; on the CPU all that is used here have one.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=device.type != "cpu")
    # TF32, where a GPU has it, in what is left of float32.
    torch.set_float32_matmul_precision("high" if device.type == "cuda" else "highest")


def _silent(values: dict[str, float], step: int) -> None:
    """The other processes have nothing to report."""


def _save(
    workspace: Workspace, params: Params, trainer: Trainer, prepared: dict[str, Any], precision: Precision
) -> None:
    """Writes the model with what it ranks by: a querybank of train, its strength and the fusion's weights.

    All are chosen on val; a fusion that was not trained has no weight.
    """
    model, inputs, top_k = trainer.model, trainer.val_inputs, params.evaluate.top_k
    computing: Any = {"device": trainer.device, "precision": precision}
    batches = {**computing, "batch_size": params.evaluate.batch_size}
    querybank = embed_querybank(model, trainer.train_inputs, seed=params.seed, **batches, description="querybank")
    embedded = embed_split(model, inputs.split, inputs=inputs, **batches, description="embed val")
    scale, weights = model.logit_scale.item(), Weights()
    querybank = querybank._replace(strength=choose_strength(embedded, querybank, scale))
    if params.train.objectives.itm:
        embedded = embedded.biased(querybank, scale)
        weights = choose_weights(
            candidate_logits(model, embedded, top_k, **computing, description="re-rank val"), scale
        )
    save_model(
        workspace.model,
        model,
        params.model,
        workspace.tokenizer,
        Preprocessing(**{name: prepared[name] for name in ("image_size", "resize", "max_tokens")}),
        Reranking(
            top_k=top_k,
            match_weight=weights.itm,
            alignment_weight=weights.alignment,
            bias_strength=querybank.strength,
        ),
        querybank,
    )


def _identity(workspace: Workspace, params: Params, threads: int) -> dict[str, Any]:
    """What the weights depend on: a checkpoint is taken up only by a training for which all of it is the same."""
    files = ("settings.json", "images.parquet", "captions.parquet", "tokens.npy")
    return {
        "params": params.model_dump(include={"seed", "data", "model", "train"}),
        "threads": threads,
        "processes": process_count(),
        "torch": torch.__version__,
        "data": {name: file_sha256(workspace.prepared / name) for name in files},
        # A checkpoint that other code made is not taken up.
        "code": sources_sha256(Path(diptych.__file__).parent, ("data", "model", "retrieval", "training")),
    }


def _write_history(path: Path, history: list[dict[str, float]]) -> None:
    with atomic_path(path) as temporary:
        pd.DataFrame(history).to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")
