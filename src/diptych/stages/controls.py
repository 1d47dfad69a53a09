"""The controls stage: re-ranking of the test split without what the fusion reads of the image."""

from __future__ import annotations

import logging

from diptych.config import Params
from diptych.data.prepared import Prepared
from diptych.model.device import choose_precision, prepare
from diptych.project.workspace import Workspace
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.ranking import Ranks
from diptych.retrieval.stored_ranks import save_ranks
from diptych.retriever import Retriever
from diptych.training.controls import Controls
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
        prepare(params.device, params.threads)
        for name, rank in _controls(workspace, params).chosen().items():
            ranks[name] = rank()
            log.info("%s: RSUM %.1f on test", name, metrics_from_ranks(*ranks[name])["rsum"])
    save_ranks(workspace.controls, ranks)


def _controls(workspace: Workspace, params: Params) -> Controls:
    retriever = Retriever.load(workspace.model, params.device, params.evaluate.batch_size)
    prepared = Prepared(workspace.prepared, params.data.splits)
    inputs = _training_inputs(workspace, params, prepared, retriever)
    val = retriever.embed(prepared.split("val"), "embed val", inputs.val())
    test = retriever.embed(prepared.split("test"), "embed test")
    return Controls(retriever.model, retriever.weights, inputs.plain(), val, test, params)


def _training_inputs(workspace: Workspace, params: Params, prepared: Prepared, retriever: Retriever) -> TrainingInputs:
    """Return the training's inputs; after epochs of the fusion alone, with the features that these have stored."""
    splits = prepared.split("train"), prepared.split("val")
    if not params.train.fusion_epochs:
        return TrainingInputs(*splits, params.train, params.seed, None)
    device = retriever.device
    precision = choose_precision(params.train.precision, device)
    limit = params.train.features_gib
    cache = FeatureCache(workspace.features, limit_gib=limit, device=device, precision=precision)
    inputs = TrainingInputs(*splits, params.train, params.seed, cache)
    inputs.enter(retriever.model, params.train.all_epochs - 1)
    return inputs
