"""The controls stage: re-ranking of the test split without what the fusion reads of the image."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch

from diptych.config import Control, Params
from diptych.data.prepared import Prepared, PreparedSplit
from diptych.model.device import choose_precision, prepare
from diptych.model.dual_encoder import DualEncoder
from diptych.model.fusion import make_fusion
from diptych.project.workspace import Workspace
from diptych.retrieval.choices import choose_weights
from diptych.retrieval.embedding import Embedded, embed_means
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.ranking import Ranks
from diptych.retrieval.reranking import Directed, Weights, candidate_logits, reranked_ranks
from diptych.retrieval.stored_ranks import save_ranks
from diptych.retriever import Retriever
from diptych.training.control import train_control
from diptych.training.features import FeatureCache
from diptych.training.inputs import TrainingInputs

log = logging.getLogger(__name__)


def run(workspace: Workspace, params: Params) -> None:
    """Write artifacts/controls.npz: the ranks on test of each control, re-ranked like the fusion, at weights from val.

    Raises:
        DiptychError: the model, the prepared data or the device is missing.
    """
    ranks: dict[str, Ranks] = {}
    # A fusion that was not trained needs no control.
    if params.baselines.controls and params.train.objectives.itm:
        device = prepare(params.device, params.threads)
        controls = _Controls(workspace, params, device)
        for name, rank in controls.chosen().items():
            ranks[name] = rank()
            log.info("%s: RSUM %.1f on test", name, metrics_from_ranks(*ranks[name])["rsum"])
    save_ranks(workspace.controls, ranks)


class _Controls:
    """The controls of a trained fusion, and the galleries that they re-rank."""

    def __init__(self, workspace: Workspace, params: Params, device: torch.device) -> None:
        self._params = params
        self._retriever = Retriever.load(workspace.model, str(device), params.evaluate.batch_size)
        prepared = Prepared(workspace.prepared, params.data.splits)
        self._train, val, test = (prepared.split(role) for role in ("train", "val", "test"))
        self._inputs = self._training_inputs(workspace, val)
        embed = self._retriever.embed
        self._galleries = _Galleries(
            embed(val, "embed val", self._inputs.val()), embed(test, "embed test"), params.evaluate.top_k, device
        )

    def chosen(self) -> dict[Control, Callable[[], Ranks]]:
        """Return the functions that rank test by the controls of params.yaml; an MLP is no control to an MLP."""
        known: dict[Control, Callable[[], Ranks]] = {"shuffled_images": self._shuffled_images}
        if self._params.model.fusion.attention:
            known["mlp_fusion"] = self._mlp_fusion
        return {name: known[name] for name in self._params.baselines.controls if name in known}

    def _shuffled_images(self) -> Ranks:
        """Re-rank with the trained fusion, which is shown another image than the pair's."""
        return self._galleries.with_other_images().reranked(self._retriever.model, self._retriever.weights)

    def _mlp_fusion(self) -> Ranks:
        """Re-rank with an MLP of as many weights, which is trained in the fusion's place."""
        params, model, device = self._params, self._retriever.model, self._retriever.device
        batch_size = params.evaluate.batch_size
        means = embed_means(model, self._inputs.plain(), batch_size=batch_size, device=device)
        fusion, mlp = model.fusion, params.model.fusion.model_copy(update={"attention": False})
        torch.manual_seed(params.seed)
        model.fusion = make_fusion(params.model.dim, model.image_tower.grid_size, mlp).to(device)
        train_control(model, self._train, means, params.train, params.seed)
        ranks = self._galleries.reranked(model, Directed(Weights(itm=1.0), Weights(itm=1.0)))
        model.fusion = fusion
        return ranks

    def _training_inputs(self, workspace: Workspace, val: PreparedSplit) -> TrainingInputs:
        """Return the training's inputs; after epochs of the fusion alone, with the features that these have stored."""
        params, model, device = self._params, self._retriever.model, self._retriever.device
        train = self._train
        if not params.train.fusion_epochs:
            return TrainingInputs(train, val, params.train, params.seed, None)
        precision = choose_precision(params.train.precision, device)
        limit = params.train.features_gib
        cache = FeatureCache(workspace.features, limit_gib=limit, device=device, precision=precision)
        inputs = TrainingInputs(train, val, params.train, params.seed, cache)
        inputs.enter(model, params.train.all_epochs - 1)
        return inputs


class _Galleries(NamedTuple):
    """The splits that controls re-rank, in the model's order."""

    val: Embedded
    test: Embedded
    top_k: int
    device: torch.device

    def reranked(self, model: DualEncoder, parts: Directed) -> Ranks:
        """Return the ranks on test re-ranked by those `parts` of the fusion that have weight; val chooses how much."""
        on_val, on_test = (
            candidate_logits(model, embedded, self.top_k, device=self.device, weights=parts)
            for embedded in (self.val, self.test)
        )
        scale = model.logit_scale.item()
        return reranked_ranks(on_test, scale, choose_weights(on_val, scale))

    def with_other_images(self) -> _Galleries:
        """Return galleries in which every image has the grid of another one; the towers rank as before."""
        val, test = (replace(split, grid=split.grid.roll(1, dims=0)) for split in (self.val, self.test))
        return self._replace(val=val, test=test)
