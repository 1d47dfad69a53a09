"""The controls stage: what re-ranks the test split where the fusion cannot look at the image."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import NamedTuple

import torch

from diptych.config import Params
from diptych.data.inputs import Inputs
from diptych.data.prepared import Prepared
from diptych.model.device import choose_device, choose_precision, keep_freed_memory, set_threads
from diptych.model.dual_encoder import DualEncoder
from diptych.model.fusion import make_fusion
from diptych.model.package import load_model
from diptych.project.workspace import Workspace
from diptych.retrieval.embedding import Embedded, embed_means, embed_split
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.ranking import Ranks
from diptych.retrieval.reranking import Weights, choose_weights, match_logits, reranked_ranks
from diptych.retrieval.stored_ranks import save_ranks
from diptych.training.control import train_control
from diptych.training.features import FeatureCache
from diptych.training.inputs import TrainingInputs

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
    if params.baselines.controls and params.train.objectives.itm:
        ranks = _ranks(workspace, params)
    save_ranks(workspace.controls, ranks)


def _ranks(workspace: Workspace, params: Params) -> dict[str, Ranks]:
    device = choose_device(params.device)
    precision = choose_precision(params.train.precision, device)
    loaded = load_model(workspace.model, str(device))
    model, reranking, batch_size = loaded.model, loaded.reranking, params.evaluate.batch_size
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
        return embedded.normalized(loaded.querybank, model.logit_scale.item())

    galleries = _Galleries(embed(inputs.val(), "val"), embed(Inputs(test), "test"), params.evaluate.top_k, device)

    def shuffled_images() -> Ranks:
        parts = Weights(reranking.match_weight, reranking.alignment_weight)
        return galleries.with_other_images().reranked(model, parts)

    def mlp_fusion() -> Ranks:
        means = embed_means(model, inputs.plain(), batch_size=batch_size, device=device)
        fusion, mlp = model.fusion, params.model.fusion.model_copy(update={"attention": False})
        torch.manual_seed(params.seed)
        model.fusion = make_fusion(params.model.dim, model.image_tower.grid_size, mlp).to(device)
        train_control(model, train, means, params.train, params.seed)
        ranks = galleries.reranked(model, Weights(match=1.0))
        model.fusion = fusion
        return ranks

    controls = {"shuffled_images": shuffled_images, "mlp_fusion": mlp_fusion}
    if not params.model.fusion.attention:
        # An MLP is no control to an MLP.
        del controls["mlp_fusion"]
    found: dict[str, Ranks] = {}
    for name in params.baselines.controls:
        if name in controls:
            found[name] = controls[name]()
            log.info("%s: RSUM %.1f on test", name, metrics_from_ranks(*found[name])["rsum"])
    return found


class _Galleries(NamedTuple):
    """What is re-ranked, as the model ranks it before."""

    val: Embedded
    test: Embedded
    top_k: int
    device: torch.device

    def reranked(self, model: DualEncoder, parts: Weights) -> Ranks:
        """What the queries of test find by those `parts` of the model's fusion that have weight, at weights chosen on
        val.
        """
        of_val, of_test = (
            match_logits(model, embedded, self.top_k, device=self.device, weights=parts)
            for embedded in (self.val, self.test)
        )
        scale = model.logit_scale.item()
        return reranked_ranks(of_test, scale, choose_weights(of_val, scale))

    def with_other_images(self) -> _Galleries:
        """Every image has the grid of another one; what the towers rank by stays as it is."""
        val, test = (replace(one, grid=one.grid.roll(1, dims=0)) for one in (self.val, self.test))
        return self._replace(val=val, test=test)
