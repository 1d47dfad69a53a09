"""Cross-validation: a recipe is trained on the folds of a dataset, and ranks images that chose nothing in it.

The features of frozen layers are computed once for all folds and recipes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diptych.config import Params, Role
from diptych.data.folds import Fold, folds
from diptych.data.prepared import Prepared
from diptych.model.device import choose_precision
from diptych.model.dual_encoder import DualEncoder, build_model
from diptych.retrieval.embedding import embed_split
from diptych.retrieval.evaluation import evaluate_gallery
from diptych.retrieval.ranking import Ranks
from diptych.training.checkpoints import Checkpoints
from diptych.training.controls import Controls
from diptych.training.features import SharedFeatures
from diptych.training.finishing import finish
from diptych.training.inputs import TrainingInputs
from diptych.training.loop import Setup, Trainer


class CrossValidation:
    """Trainings on folds of a prepared dataset.

    Args:
        prepared: the dataset.
        count: the number of folds.
        roles: the splits whose images take part.
        params: settings that are those of all recipes: `data.splits.held_out`, `train.batch_size`.
        cache: folder of the features of frozen layers.
        device: device to train on.
    """

    def __init__(
        self,
        prepared: Prepared,
        count: int,
        *,
        roles: Sequence[Role],
        params: Params,
        cache: Path,
        device: torch.device,
    ) -> None:
        self._prepared, self._cache, self._device = prepared, cache, device
        self._whole = prepared.part(prepared.rows_of(roles))
        held_out, batch_size = params.data.splits.held_out, params.train.batch_size
        self.folds = list(folds(prepared, count, roles=roles, held_out=held_out, batch_size=batch_size))

    def store_features(self, params: Params) -> None:
        """Compute the features that a training by `params` reads, where they are not stored yet."""
        model = self._model(params).to(self._device)
        inputs = TrainingInputs(self._whole, self._whole, params.train, params.seed, self._features(params))
        for epoch in (0, params.train.all_epochs - 1):
            inputs.enter(model, epoch)

    def ranks(self, params: Params, fold: Fold) -> dict[str, Ranks]:
        """Train by `params` on a fold, and return the ranks of its test part by stage and control.

        What is chosen is chosen on its val part.
        """
        trainer = self._train(params, fold)
        finished, model, device = finish(trainer, params), trainer.model, self._device
        scale, top_k = model.logit_scale.item(), params.evaluate.top_k
        inputs = TrainingInputs(fold.test, fold.val, params.train, params.seed, self._features(params))
        inputs.enter(model, params.train.all_epochs - 1)
        batches: Any = {"batch_size": params.evaluate.batch_size, "device": device, "description": "embed test"}
        test = embed_split(model, fold.test, inputs=inputs.plain(), **batches).biased(finished.querybank, scale)
        ranks = evaluate_gallery(model, test, top_k=top_k, weights=finished.weights, device=device).ranks
        if params.train.objectives.itm:
            controls = Controls(model, finished.weights, trainer.train_inputs, finished.val, test, params)
            ranks |= {name: rank() for name, rank in controls.chosen().items()}
        return ranks

    def _train(self, params: Params, fold: Fold) -> Trainer:
        model = self._model(params)
        with tempfile.TemporaryDirectory() as folder:
            setup = Setup(
                seed=params.seed,
                evaluation_batch=params.evaluate.batch_size,
                checkpoints=Checkpoints(Path(folder), {}),
                report=lambda *_: None,
                device=self._device,
                features=self._features(params),
            )
            trainer = Trainer(model, fold.train, fold.val, params.train, setup)
            trainer.run()
        return trainer

    def _model(self, params: Params) -> DualEncoder:
        torch.manual_seed(params.seed)
        size, vocabulary = (self._prepared.settings[name] for name in ("image_size", "vocabulary_size"))
        return build_model(params.model, size, vocabulary, params.train.temperature)

    def _features(self, params: Params) -> SharedFeatures:
        precision = choose_precision(params.train.precision, self._device)
        limit = params.train.features_gib
        return SharedFeatures(self._whole, self._cache, limit_gib=limit, device=self._device, precision=precision)
