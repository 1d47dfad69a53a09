"""What the towers are given in each epoch: pixels and tokens, or the kept features of what is frozen of a tower."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.config import Train
from diptych.data.inputs import Inputs, KeptImages, KeptTexts
from diptych.data.prepared import PreparedSplit
from diptych.model.dual_encoder import DualEncoder
from diptych.training.features import FeatureCache
from diptych.training.optimisation import Frozen, frozen_towers
from diptych.training.views import ImageViews


class TrainingInputs:
    """Of the train split and of val.

    Args:
        seed: of what is drawn for the training images.
        cache: where features are kept; None: they are computed anew each time.
    """

    def __init__(
        self, train: PreparedSplit, val: PreparedSplit, settings: Train, seed: int, cache: FeatureCache | None
    ) -> None:
        self._splits = (train, val)
        self._settings = settings
        self._cache = None if settings.keep_features == "never" else cache
        self._images: list[KeptImages] | None = None
        self._mirrored: KeptImages | None = None
        self._views = settings.augmentation and ImageViews(settings.augmentation, seed)
        self._texts: list[KeptTexts] | None = None
        self._halved = Frozen(False, False)
        """Towers whose lower layers never learn and whose features are those of these: kept in every epoch."""

    def keep_features(self, model: DualEncoder, epoch: int) -> None:
        """Of the towers, or of lower layers, that are frozen in `epoch`, where training begins or goes on."""
        if self._cache is None:
            return
        settings = self._settings
        image_layers = None if settings.images_vary else settings.image_tower_top_layers
        self._halved = Frozen(
            image_layers is not None and model.image_tower.split(image_layers),
            settings.text_tower_top_layers is not None and model.text_tower.split(settings.text_tower_top_layers),
        )
        kept = self._kept(epoch)
        if kept.image and not settings.images_vary:
            self._images = self._cache.images(model.image_tower, self._splits)
            if self._images and self._views:
                mirrored = self._cache.images(model.image_tower, self._splits[:1], mirrored=True)
                self._images, self._mirrored = (self._images, mirrored[0]) if mirrored else (None, None)
        if kept.text:
            self._texts = self._cache.texts(model.text_tower, self._splits)

    def train(self, epoch: int) -> Inputs:
        """Of the train split; features are those of the views that the settings ask for."""
        inputs = self._of(0, epoch)
        if self._views and self._mirrored and self._images and self._kept(epoch).image:
            train = self._splits[0]
            sides = _EitherSide(self._images[0], self._mirrored, self._views, train.image_ids, epoch)
            return Inputs(train, sides, inputs.texts)
        return inputs

    def val(self, epoch: int) -> Inputs:
        """Of the val split."""
        return self._of(1, epoch)

    def _of(self, split: int, epoch: int) -> Inputs:
        kept = self._kept(epoch)
        return Inputs(
            self._splits[split],
            self._images[split] if self._images and kept.image else None,
            self._texts[split] if self._texts and kept.text else None,
        )

    def _kept(self, epoch: int) -> Frozen:
        frozen = frozen_towers(self._settings, epoch)
        return Frozen(frozen.image or self._halved.image, frozen.text or self._halved.text)


class _EitherSide:
    """Features of each image or of its mirror image, as `views` draws it for an epoch."""

    def __init__(
        self, plain: KeptImages, mirrored: KeptImages, views: ImageViews, image_ids: NDArray[np.int64], epoch: int
    ) -> None:
        self._plain = plain
        self._mirrored = mirrored
        self._views = views
        self._image_ids = image_ids
        self._epoch = epoch

    def __call__(self, images: NDArray[np.int64]) -> Tensor:
        """As `ImageInputs` says."""
        features = self._plain(images)
        # An image is mirrored whatever its size.
        draws = (self._views.draw(1, image_id, self._epoch, view=0) for image_id in self._image_ids[images])
        there = np.flatnonzero([draw.mirrored for draw in draws])
        if len(there):
            features[torch.from_numpy(there)] = self._mirrored(images[there])
        return features
