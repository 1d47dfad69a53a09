"""What the towers are given in each epoch: pixels and tokens, or while a tower is frozen the features that are kept."""

from __future__ import annotations

from diptych.config import Train
from diptych.data.inputs import Inputs, KeptImages, KeptTexts
from diptych.data.prepared import PreparedSplit
from diptych.model.dual_encoder import DualEncoder
from diptych.training.features import FeatureCache
from diptych.training.optimisation import frozen_towers


class TrainingInputs:
    """Of the train split and of val.

    Args:
        cache: where features are kept; None: they are computed anew each time.
    """

    def __init__(self, train: PreparedSplit, val: PreparedSplit, settings: Train, cache: FeatureCache | None) -> None:
        self._splits = (train, val)
        self._settings = settings
        self._cache = None if settings.keep_features == "never" else cache
        self._images: list[KeptImages] | None = None
        self._texts: list[KeptTexts] | None = None

    def keep_features(self, model: DualEncoder, epoch: int) -> None:
        """Of the towers that are frozen in `epoch`, where training begins or goes on."""
        frozen = frozen_towers(self._settings, epoch)
        if self._cache and frozen.image and not self._settings.images_vary:
            self._images = self._cache.images(model.image_tower, self._splits)
        if self._cache and frozen.text:
            self._texts = self._cache.texts(model.text_tower, self._splits)

    def train(self, epoch: int) -> Inputs:
        """Of the train split."""
        return self._of(0, epoch)

    def val(self, epoch: int) -> Inputs:
        """Of the val split."""
        return self._of(1, epoch)

    def _of(self, split: int, epoch: int) -> Inputs:
        frozen = frozen_towers(self._settings, epoch)
        return Inputs(
            self._splits[split],
            self._images[split] if self._images and frozen.image else None,
            self._texts[split] if self._texts and frozen.text else None,
        )
