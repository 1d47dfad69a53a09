"""Estimate of a training's time on this machine, from a few batches of noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from diptych.config import Params, TowerTraining
from diptych.model.device import choose_precision
from diptych.model.dual_encoder import build_model
from diptych.model.towers import Tower
from diptych.retrieval.embedding import inference
from diptych.training.batches import Batch, groups_of_like_length
from diptych.training.optimisation import freeze, frozen_in, make_optimizer
from diptych.training.step import TrainingStep

_IMAGES = 32
"""Largest number of images in a batch of noise."""
_ROUNDS = 2
"""Number of batches of which the fastest counts: the first one also warms the machine up."""


@dataclass(frozen=True)
class Speed:
    """Seconds that an image with its captions takes on this machine.

    Attributes:
        first: to train on it in the first epoch, in which towers may be frozen.
        last: to train on it in the towers' last epoch.
        features: to compute the features of frozen layers once for both.
    """

    first: float
    last: float
    features: float

    def minutes(self, params: Params, images: int) -> float:
        """Return the minutes of a training on `images` images, without the fusion's own epochs."""
        train = params.train
        first = max(train.image_tower.frozen_epochs, train.text_tower.frozen_epochs)
        sides = 2 if train.augmentation and train.augmentation.flip else 1
        return images * (sides * self.features + first * self.first + (train.epochs - first) * self.last) / 60


def measure_speed(params: Params, tokens: int, device: torch.device) -> Speed:
    """Return the speed of a training by `params` with captions of `tokens` tokens.

    Raises:
        DiptychError: a tower is missing or impossible.
    """
    torch.manual_seed(0)
    settings, vocabulary = params.train, params.preprocess.vocabulary_size
    model = build_model(params.model, params.preprocess.image_size, vocabulary, settings.temperature)
    step = TrainingStep(model, settings.objectives.model_copy(update={"itm": 0.0}), params.seed).to(device)
    optimizer = make_optimizer(step, settings)
    noise = _noise(params, tokens).to(device)
    features, seconds = 0.0, []
    for epoch in (0, settings.epochs - 1):
        batch, taken = _with_features(step, noise, params, epoch, device)
        features += taken
        freeze(step, settings, epoch)
        step.train()
        seconds.append(_seconds(partial(_train, step, optimizer, batch, params), device))
    first, last = (taken / len(noise.images) for taken in seconds)
    return Speed(first, last, features / len(noise.images))


def _with_features(
    step: TrainingStep, batch: Batch, params: Params, epoch: int, device: torch.device
) -> tuple[Batch, float]:
    """Return the batch with the features of what is frozen in `epoch`, and the seconds that these took."""
    settings, model = params.train, step.model
    frozen = frozen_in(settings, epoch)
    stores = settings.keep_features != "never"
    images = stores and not settings.images_vary and _stops(model.image_tower, frozen.image, settings.image_tower)
    texts = stores and _stops(model.text_tower, frozen.text, settings.text_tower)

    def compute() -> Batch:
        with inference(model, device, choose_precision(settings.precision, device)):
            return replace(
                batch,
                images=model.image_tower.features(batch.images) if images else batch.images,
                texts=model.text_tower.features(batch.texts, batch.mask, batch.groups) if texts else batch.texts,
            )

    taken = _seconds(compute, device) if images or texts else 0.0
    computed = compute()
    # A tensor of inference mode cannot be saved for a gradient.
    return replace(computed, images=computed.images.clone(), texts=computed.texts.clone()), taken


def _stops(tower: Tower, frozen: bool, settings: TowerTraining) -> bool:
    """Let the tower's features end where its frozen layers end; return False where there are none."""
    if frozen:
        tower.join()
        return True
    return settings.top_layers is not None and tower.split(settings.top_layers)


def _train(step: TrainingStep, optimizer: torch.optim.Optimizer, batch: Batch, params: Params) -> None:
    device = batch.mask.device
    precision = choose_precision(params.train.precision, device)
    with torch.autocast(device.type, {"fp16": torch.float16}.get(precision, torch.bfloat16), enabled=precision != "no"):
        loss = step(batch).total
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _noise(params: Params, tokens: int) -> Batch:
    """Return a batch of random pixels and token ids, in the sizes that `params` names."""
    random = np.random.default_rng(0)
    size, each = params.preprocess.image_size, params.train.captions_per_image
    images = min(_IMAGES, params.train.batch_size)
    shape = images * each, tokens
    return Batch(
        epoch=0,
        step=0,
        image_ids=list(range(images)),
        images=torch.from_numpy(random.integers(256, size=(images, size, size, 3), dtype=np.uint8)),
        texts=torch.from_numpy(random.integers(5, params.preprocess.vocabulary_size, size=shape)),
        mask=torch.ones(shape, dtype=torch.bool),
        groups=groups_of_like_length(np.full(images * each, tokens)),
        image_of_caption=torch.arange(images).repeat_interleave(each),
    )


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of a few rounds of `work`."""
    taken = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken)
