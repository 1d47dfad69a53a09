"""What the towers are given in each epoch: pixels and tokens, or the kept features of what is frozen of a tower."""

from __future__ import annotations

from diptych.config import Train
from diptych.data.inputs import Inputs, KeptImages, KeptTexts
from diptych.data.prepared import PreparedSplit
from diptych.model.dual_encoder import DualEncoder
from diptych.training.features import FeatureCache
from diptych.training.optimisation import Frozen, frozen_towers


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
        if kept.text:
            self._texts = self._cache.texts(model.text_tower, self._splits)

    def train(self, epoch: int) -> Inputs:
        """Of the train split."""
        return self._of(0, epoch)

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
