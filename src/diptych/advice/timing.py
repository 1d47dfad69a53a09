"""Estimate of a training's time on this machine, from a few batches of noise."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from diptych.config import Params
from diptych.model.device import choose_precision
from diptych.model.dual_encoder import build_model
from diptych.retrieval.embedding import AUTOCAST, inference
from diptych.training.batches import Batch, groups_of_like_length
from diptych.training.inputs import ends_at
from diptych.training.optimisation import freeze, frozen_in, make_optimizer
from diptych.training.step import TrainingStep

_IMAGES = 32
"""Largest number of images whose features are computed; a larger batch repeats them."""
_ROUNDS = 2
"""Number of rounds of which the fastest counts: the first one also warms the machine up."""


@dataclass(frozen=True)
class Speed:
    """Seconds that an image with its captions takes on this machine.

    Attributes:
        first: to train on it in the first epoch, in which towers may be frozen.
        last: to train on it in the towers' last epoch.
        image_features: to compute the features of the image's frozen layers once.
        text_features: to compute those of its captions.
    """

    first: float
    last: float
    image_features: float
    text_features: float

    def minutes(self, params: Params, images: int) -> float:
        """Return the minutes of a training on `images` images, without the fusion's own epochs."""
        train = params.train
        learns = train.image_tower.lr_multiplier or train.text_tower.lr_multiplier
        first = max(train.image_tower.frozen_epochs, train.text_tower.frozen_epochs) if learns else train.epochs
        features = (2 if train.augmentation else 1) * self.image_features + self.text_features
        return images * (features + first * self.first + (train.epochs - first) * self.last) / 60


def measure_speed(params: Params, tokens: int, device: torch.device) -> Speed:
    """Return the speed of a training by `params` with captions of `tokens` tokens.

    Raises:
        DiptychError: a tower is missing or impossible.
    """
    torch.manual_seed(0)
    settings, vocabulary = params.train, params.preprocess.vocabulary_size
    model = build_model(params.model, params.preprocess.image_size, vocabulary, settings.temperature)
    alone = {} if settings.fusion_epochs is None else {"itm": 0.0}
    step = TrainingStep(model, settings.objectives.model_copy(update=alone), params.seed).to(device)
    optimizer = make_optimizer(step, settings)
    noise = _noise(params, tokens).to(device)
    probe = _Probe(step, params, noise)

    def seconds_in(epoch: int) -> float:
        batch = probe.batch(epoch)
        freeze(step, settings, epoch)
        step.train()
        return _seconds(partial(_train, step, optimizer, batch, params), device) / settings.batch_size

    first, last = seconds_in(0), seconds_in(settings.epochs - 1)
    return Speed(first, last, probe.seconds_of("images"), probe.seconds_of("texts"))


class _Probe:
    """Batches with the features of what is frozen.

    Attributes:
        seconds: seconds that the features took, by side ("images", "texts") and whether the whole tower is frozen.
    """

    def __init__(self, step: TrainingStep, params: Params, noise: Batch) -> None:
        self.seconds: dict[tuple[str, bool], float] = {}
        self._model, self._params, self._noise = step.model, params, noise
        self._device = noise.mask.device

    def batch(self, epoch: int) -> Batch:
        """Return a whole batch as `epoch` reads it."""
        settings, model, noise = self._params.train, self._model, self._noise
        frozen = frozen_in(settings, epoch)
        images, texts = noise.images, noise.texts
        if settings.keep_features != "never":
            top = settings.image_tower.top_layers, settings.text_tower.top_layers
            if not settings.images_vary and ends_at(model.image_tower, frozen.image, top[0]):
                images = self._features("images", frozen.image, partial(model.image_tower.features, images))
            if ends_at(model.text_tower, frozen.text, top[1]):
                given = noise.texts, noise.mask, noise.groups
                texts = self._features("texts", frozen.text, partial(model.text_tower.features, *given))
        return _repeated(replace(noise, images=images, texts=texts), settings.batch_size)

    def seconds_of(self, side: str) -> float:
        """Return the seconds that the features of a side took for an image."""
        return sum(taken for (name, _), taken in self.seconds.items() if name == side) / len(self._noise.images)

    def _features(self, name: str, whole: bool, compute: Callable[[], Tensor]) -> Tensor:
        with inference(self._model, self._device, choose_precision(self._params.train.precision, self._device)):
            if (name, whole) not in self.seconds:
                self.seconds[name, whole] = _seconds(compute, self._device)
            features = compute()
        # A tensor of inference mode cannot be saved for a gradient.
        return features.clone()


def _train(step: TrainingStep, optimizer: torch.optim.Optimizer, batch: Batch, params: Params) -> None:
    device = batch.mask.device
    precision = choose_precision(params.train.precision, device)
    with torch.autocast(device.type, AUTOCAST[precision], enabled=precision != "no"):
        loss = step(batch).total
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _noise(params: Params, tokens: int) -> Batch:
    """Return random pixels and token ids of a few images, in the sizes that `params` names."""
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


def _repeated(batch: Batch, images: int) -> Batch:
    """Return a batch of `images` images, which repeats those of `batch`."""
    each = len(batch.mask) // len(batch.images)
    image = torch.arange(images, device=batch.mask.device)
    caption = torch.arange(images * each, device=batch.mask.device)
    texts, mask = batch.texts[caption % len(batch.mask)], batch.mask[caption % len(batch.mask)]
    return replace(
        batch,
        image_ids=image.tolist(),
        images=batch.images[image % len(batch.images)],
        texts=texts,
        mask=mask,
        groups=groups_of_like_length(np.full(images * each, mask.shape[1])),
        image_of_caption=caption // each,
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
