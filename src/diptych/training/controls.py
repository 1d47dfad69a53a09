"""Controls of a trained fusion: re-ranking without what it reads of the image.

One is the fusion itself, which is shown another image than the pair's. The other is an MLP with as many weights, which
is trained in its place on the means of the tower outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from diptych.config import Control, Params, Train
from diptych.data.inputs import Inputs
from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.model.dual_encoder import DualEncoder, ImageFeatures, TextFeatures
from diptych.model.fusion import make_fusion
from diptych.model.objectives import draw_hard_negatives, itm_loss
from diptych.progress import progress
from diptych.retrieval.choices import choose_weights
from diptych.retrieval.embedding import Embedded, Means, embed_means
from diptych.retrieval.ranking import Ranks
from diptych.retrieval.reranking import Directed, Weights, candidate_logits, reranked_ranks
from diptych.training.batches import Batch, BatchPlan
from diptych.training.draws import Purpose, generator
from diptych.training.optimisation import make_schedule


class Controls:
    """The controls of a trained fusion, which re-rank a test split in the towers' order.

    Args:
        model: the trained model, on its device.
        weights: the fusion's weights.
        train: inputs of the train split, without augmentation.
        val: gallery that the weights of the controls are chosen on.
        test: gallery to rank.
        params: what the model was trained with.
    """

    def __init__(
        self, model: DualEncoder, weights: Directed, train: Inputs, val: Embedded, test: Embedded, params: Params
    ) -> None:
        self._model, self._weights, self._params = model, weights, params
        self._train, self._val, self._test = train, val, test
        self._device = model.log_scale.device

    def chosen(self) -> dict[Control, Callable[[], Ranks]]:
        """Return the functions that rank test by the controls of params.yaml; an MLP is no control to an MLP."""
        known: dict[Control, Callable[[], Ranks]] = {"shuffled_images": self._shuffled_images}
        if self._params.model.fusion.attention:
            known["mlp_fusion"] = self._mlp_fusion
        return {name: known[name] for name in self._params.baselines.controls if name in known}

    def _shuffled_images(self) -> Ranks:
        """Re-rank with the trained fusion, which reads the grid of another image."""
        val, test = (replace(split, grid=split.grid.roll(1, dims=0)) for split in (self._val, self._test))
        return self._reranked(val, test, self._weights)

    def _mlp_fusion(self) -> Ranks:
        """Re-rank with an MLP of as many weights, which is trained in the fusion's place."""
        params, model = self._params, self._model
        means = embed_means(model, self._train, batch_size=params.evaluate.batch_size, device=self._device)
        fusion, mlp = model.fusion, params.model.fusion.model_copy(update={"attention": False})
        torch.manual_seed(params.seed)
        model.fusion = make_fusion(params.model.dim, model.image_tower.grid_size, mlp).to(self._device)
        train_control(model, self._train.split, means, params.train, params.seed)
        only_itm = Weights(itm=1.0)
        ranks = self._reranked(self._val, self._test, Directed(only_itm, only_itm))
        model.fusion = fusion
        return ranks

    def _reranked(self, val: Embedded, test: Embedded, parts: Directed) -> Ranks:
        """Return the ranks on test by those `parts` of the fusion that have weight; val chooses how much."""
        top_k, scale = self._params.evaluate.top_k, self._model.logit_scale.item()
        on_val, on_test = (
            candidate_logits(self._model, embedded, top_k, device=self._device, weights=parts)
            for embedded in (val, test)
        )
        return reranked_ranks(on_test, scale, choose_weights(on_val, scale))


def train_control(model: DualEncoder, train: PreparedSplit, means: Means, settings: Train, seed: int) -> None:
    """Train the model's fusion, a `MeanFusion`, in place; the rest of the model stays as it is.

    It trains for the number of epochs that the fusion had at most. All images of a batch bring pairs, which cost little
    here.

    Args:
        model: the model whose fusion is the control.
        train: the training split.
        means: means of the tower outputs for `train`, on the model's device.
        settings: the settings that the towers were trained with.
        seed: seed of batches and pairs.

    Raises:
        DiptychError: the loss is NaN or infinite.
    """
    plan = BatchPlan(train, batch_size=settings.batch_size, captions_per_image=settings.captions_per_image, seed=seed)
    epochs = settings.fusion_epochs or settings.epochs
    weights = list(model.fusion.parameters())
    optimizer = _make_optimizer(weights, settings)
    schedule = make_schedule(optimizer, [plan.steps * epochs], settings.warmup)
    model.fusion.train()
    with progress(None, "train the control", unit="steps", total=plan.steps * epochs) as bar:
        for epoch in range(settings.all_epochs - epochs, settings.all_epochs):
            for batch in plan.epoch(epoch, 0, _indices(train)):
                loss = _loss(model, means, batch.to(means.image.device), seed)
                loss.backward()
                nn.utils.clip_grad_norm_(weights, settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                bar.update()
            if not torch.isfinite(loss):
                raise DiptychError(
                    f"the loss of the control mlp_fusion is {loss.item()} in epoch {epoch + 1}: lower "
                    "train.learning_rate, or leave it out of baselines.controls."
                )
    model.fusion.eval()


def _make_optimizer(weights: list[nn.Parameter], settings: Train) -> torch.optim.AdamW:
    groups = [
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, settings.learning_rate, fused=True)


def _indices(split: PreparedSplit) -> Inputs:
    """Return inputs that are the indices of images and captions, by which their means are looked up."""
    return Inputs(
        split,
        lambda images: torch.from_numpy(images),
        lambda captions: (torch.from_numpy(captions)[:, None], torch.ones(len(captions), 1, dtype=torch.bool)),
    )


def _loss(model: DualEncoder, means: Means, batch: Batch, seed: int) -> Tensor:
    images, captions = batch.images, batch.texts[:, 0]
    uniforms = generator(seed, Purpose.PAIRS, batch.epoch, batch.step).random((3, len(images)))
    pairs = draw_hard_negatives(
        model,
        ImageFeatures(means.grid[images, None], means.image[images]),
        TextFeatures(means.tokens[captions, None], batch.mask, means.text[captions]),
        batch.image_of_caption,
        torch.from_numpy(uniforms),
    )
    return itm_loss(model, pairs)
