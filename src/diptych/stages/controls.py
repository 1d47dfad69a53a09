"""The controls stage: what re-ranks the test split where the fusion cannot look at the image."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from diptych.config import Params
from diptych.data.inputs import Inputs
from diptych.data.prepared import Prepared
from diptych.model.device import choose_device, choose_precision, keep_freed_memory, set_threads
from diptych.model.fusion import make_fusion
from diptych.model.package import load_model
from diptych.retrieval.baselines import save_ranks
from diptych.retrieval.embedding import Embedded, embed_means, embed_split
from diptych.retrieval.metrics import Ranks, metrics_from_ranks
from diptych.retrieval.reranking import Weights, choose_weights, match_logits, reranked_ranks
from diptych.training.control import train_control
from diptych.training.features import FeatureCache
from diptych.training.inputs import TrainingInputs
from diptych.workspace import Workspace

log = logging.getLogger(__name__)


def run(workspace: Workspace, params: Params) -> None:
    """Writes artifacts/controls.npz: what the queries of the test split find by each control, re-ranked as by the
    fusion, at weights chosen on val.

    Raises:
        DiptychError: the model, the prepared data or the device is not there.
    """
    keep_freed_memory()
    set_threads(params.threads)
    ranks: dict[str, Ranks] = {}
    # A fusion that was not trained needs no control.
    if params.baselines.controls and params.train.objectives.matching:
        ranks = _ranks(workspace, params)
    save_ranks(workspace.controls, ranks)


def _ranks(workspace: Workspace, params: Params) -> dict[str, Ranks]:
    device = choose_device(params.device)
    precision = choose_precision(params.train.precision, device)
    loaded = load_model(workspace.model, str(device))
    model, reranking = loaded.model, loaded.reranking
    scale, top_k, batch_size = model.logit_scale.item(), params.evaluate.top_k, params.evaluate.batch_size
    prepared = Prepared(workspace.prepared, params.data.splits)
    train, val, test = (prepared.split(role) for role in ("train", "val", "test"))
    inputs = TrainingInputs(train, val, params.train, params.seed, None)
    if params.train.fusion_epochs:
        # The fusion's own epochs have kept features of the whole towers.
        folder, limit = workspace.local / "cache" / "features", params.train.features_gib
        cache = FeatureCache(folder, limit_gib=limit, device=device, precision=precision)
        inputs = TrainingInputs(train, val, params.train, params.seed, cache)
        inputs.enter(model, params.train.all_epochs - 1)

    def embed(given: Inputs, name: str) -> Embedded:
        embedded = embed_split(
            model, given.split, inputs=given, batch_size=batch_size, device=device, description=f"embed {name}"
        )
        return embedded.normalized(loaded.querybank, scale)

    on_val, on_test = embed(inputs.val(), "val"), embed(Inputs(test), "test")

    def rank(parts: Weights, change: bool) -> Ranks:
        shown = [_shuffled(embedded) if change else embedded for embedded in (on_val, on_test)]
        of_val, of_test = (match_logits(model, one, top_k, device=device, weights=parts) for one in shown)
        return reranked_ranks(of_test, scale, choose_weights(of_val, scale))

    found: dict[str, Ranks] = {}
    # A fusion that is an MLP already has no other control.
    there = [name for name in params.baselines.controls if name != "mlp_fusion" or params.model.fusion.attention]
    for name in there:
        if name == "shuffled_images":
            found[name] = rank(Weights(reranking.match_weight, reranking.alignment_weight), change=True)
        else:
            fusion = model.fusion
            torch.manual_seed(params.seed)
            without = params.model.fusion.model_copy(update={"attention": False})
            model.fusion = make_fusion(params.model.dim, model.image_tower.grid_size, without).to(device)
            means = embed_means(model, inputs.plain(), batch_size=batch_size, device=device)
            train_control(model, train, means, params.train, params.seed)
            found[name] = rank(Weights(match=1.0), change=False)
            model.fusion = fusion
        log.info("%s: RSUM %.1f on test", name, metrics_from_ranks(*found[name])["rsum"])
    return found


def _shuffled(embedded: Embedded) -> Embedded:
    """Every image with the grid of another one; what the towers rank by stays as it is."""
    return replace(embedded, grid=embedded.grid.roll(1, dims=0))
