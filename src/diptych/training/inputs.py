"""Inputs of the towers in each epoch: pixels and tokens, or stored features of frozen layers."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.config import Train
from diptych.data.inputs import Inputs, StoredImages, StoredTexts
from diptych.data.prepared import PreparedSplit
from diptych.model.dual_encoder import DualEncoder
from diptych.model.towers import ImageTower, TextTower, Tower
from diptych.training.features import FeatureCache
from diptych.training.optimisation import Frozen, frozen_in
from diptych.training.views import ImageViews


class TrainingInputs:
    """Inputs of the train and val splits.

    Args:
        train: the train split.
        val: the val split.
        settings: params.yaml's `train`.
        seed: seed of the random views.
        cache: cache of features; None: they are computed in every epoch.
    """

    def __init__(
        self, train: PreparedSplit, val: PreparedSplit, settings: Train, seed: int, cache: FeatureCache | None
    ) -> None:
        self._splits = (train, val)
        self._settings = settings
        self._cache = None if settings.keep_features == "never" else cache
        self._views = settings.augmentation and ImageViews(settings.augmentation, seed)
        self._entered: Frozen | None = None
        self._images: list[StoredImages] | None = None
        self._mirrored: StoredImages | None = None
        self._texts: list[StoredTexts] | None = None

    def enter(self, model: DualEncoder, epoch: int) -> None:
        """Prepare for `epoch`: find or compute the features of the layers that are frozen in it.

        A frozen tower has features of the whole tower. A tower whose top layers are trained is split, and has features
        of the layers below. Once these top layers are frozen too, the features of the whole tower are computed from
        them. Images are not augmented where the heads are frozen as well.
        """
        before, self._entered = self._entered, frozen_in(self._settings, epoch)
        if self._entered != before and self._cache:
            self._cache.release()
            self._keep_images(self._cache, model.image_tower, self._entered)
            self._keep_texts(self._cache, model.text_tower, self._entered)

    def train(self, epoch: int) -> Inputs:
        """Return inputs of the train split; features are those of the views in `epoch`."""
        inputs = self._of(0)
        if self._images and self._mirrored and self._views:
            train = self._splits[0]
            sides = _EitherSide(self._images[0], self._mirrored, self._views, train.image_ids, epoch)
            return Inputs(train, sides, inputs.texts)
        return inputs

    def plain(self) -> Inputs:
        """Return inputs of the train split without augmentation."""
        return self._of(0)

    def val(self) -> Inputs:
        """Return inputs of the val split."""
        return self._of(1)

    def _of(self, split: int) -> Inputs:
        return Inputs(
            self._splits[split],
            self._images[split] if self._images else None,
            self._texts[split] if self._texts else None,
        )

    def _keep_images(self, cache: FeatureCache, tower: ImageTower, frozen: Frozen) -> None:
        self._images = self._mirrored = None
        top_layers = self._settings.image_tower.top_layers
        varied = self._settings.images_vary and not frozen.encoders
        if varied or not ends_at(tower, frozen.image, top_layers):
            return
        if frozen.encoders and _splits(tower, top_layers):
            self._images = cache.images(tower, self._splits, whole=True)
            tower.join()
        self._images = self._images or cache.images(tower, self._splits)
        if self._images and self._views and not frozen.encoders:
            mirrored = cache.images(tower, self._splits[:1], mirrored=True)
            self._images, self._mirrored = (self._images, mirrored[0]) if mirrored else (None, None)

    def _keep_texts(self, cache: FeatureCache, tower: TextTower, frozen: Frozen) -> None:
        self._texts = None
        top_layers = self._settings.text_tower.top_layers
        if not ends_at(tower, frozen.text, top_layers):
            return
        if frozen.encoders and _splits(tower, top_layers):
            self._texts = cache.texts(tower, self._splits, whole=True)
            tower.join()
        self._texts = self._texts or cache.texts(tower, self._splits)


def ends_at(tower: Tower, frozen: bool, top_layers: int | None) -> bool:
    """Let the tower's features end where its frozen layers end; return False if it cannot be split there."""
    if frozen:
        tower.join()
        return True
    return _splits(tower, top_layers)


def _splits(tower: Tower, top_layers: int | None) -> bool:
    """Split the tower below its `top_layers`, if only these are trained; return whether that succeeded."""
    return top_layers is not None and tower.split(top_layers)


class _EitherSide:
    """Features of each image or of its mirror image, as `views` draws it for an epoch."""

    def __init__(
        self, plain: StoredImages, mirrored: StoredImages, views: ImageViews, image_ids: NDArray[np.int64], epoch: int
    ) -> None:
        self._plain = plain
        self._mirrored = mirrored
        self._views = views
        self._image_ids = image_ids
        self._epoch = epoch

    def __call__(self, images: NDArray[np.int64]) -> Tensor:
        """Return features of images, like `ImageInputs`."""
        features = self._plain(images)
        # The draw of the mirror image does not depend on the size.
        draws = (self._views.draw(1, image_id, self._epoch, view=0) for image_id in self._image_ids[images])
        positions = np.flatnonzero([draw.mirrored for draw in draws])
        if len(positions):
            features[torch.from_numpy(positions)] = self._mirrored(images[positions])
        return features
