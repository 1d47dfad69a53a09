"""The baselines stage: what single modalities and frozen towers retrieve on test, to compare the model with."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from transformers import PreTrainedTokenizerFast

from diptych.config import Params
from diptych.data.inputs import Inputs
from diptych.data.prepared import Prepared, PreparedSplit
from diptych.model.device import choose_precision, prepare
from diptych.model.dual_encoder import DualEncoder, build_model
from diptych.model.pooling import masked_mean
from diptych.progress import progress
from diptych.project.workspace import Workspace
from diptych.retrieval.baselines import BASELINES
from diptych.retrieval.embedding import inference
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.pooled import Pooled
from diptych.retrieval.ranking import Ranks, ranks_from_embeddings
from diptych.retrieval.stored_ranks import save_ranks
from diptych.training.features import FeatureCache

log = logging.getLogger(__name__)

SEED = 0
"""Of towers that have no pretrained weights. With a seed of their own, baselines are not measured again where only the
model's has changed.
"""


def run(workspace: Workspace, params: Params) -> None:
    """Writes artifacts/baselines.npz: what the queries of the test split found by each baseline.

    Raises:
        DiptychError: the prepared data, a pretrained tower or the device is not there.
    """
    device = prepare(params.device, params.threads)
    precision = choose_precision("auto", device)
    prepared = Prepared(workspace.prepared, params.data.splits)
    ranks: dict[str, Ranks] = {}
    if params.baselines.methods:
        splits = [prepared.split(role) for role in ("train", "val", "test")]
        torch.manual_seed(SEED)
        size, vocabulary = prepared.settings["image_size"], prepared.settings["vocabulary_size"]
        model = build_model(params.model, size, vocabulary, params.train.temperature).to(device)
        cache = None
        if params.train.keep_features != "never":
            folder, limit = workspace.local / "cache" / "features", params.train.features_gib
            cache = FeatureCache(folder, limit_gib=limit, device=device, precision=precision)
        # Only what the training finds useful too is kept.
        image_frozen = params.train.image_tower.is_frozen_at_first
        text_frozen = params.train.text_tower.is_frozen_at_first
        caches = cache if image_frozen else None, cache if text_frozen else None
        towers = _Towers(model, *caches, params.evaluate.batch_size, device)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(workspace.tokenizer)
        with inference(model, device, precision):
            train, val, test = towers.pooled(splits)

        def encode(sentences: Sequence[str]) -> Tensor:
            with inference(model, device, precision):
                return towers.sentences(tokenizer, sentences)

        # Not in the towers' precision: what is near would be tied.
        for name in params.baselines.methods:
            started = time.perf_counter()
            fitted = BASELINES[name](train, val, encode)
            ranks[name] = ranks_from_embeddings(*fitted(test), test.image_of_caption)
            rsum, seconds = metrics_from_ranks(*ranks[name])["rsum"], time.perf_counter() - started
            log.info("%s: RSUM %.1f on test, fitted in %.1f s", name, rsum, seconds)
    save_ranks(workspace.baselines, ranks)


class _Towers:
    """Both towers as they came, and the mean token, of length one, of whatever they are given."""

    def __init__(
        self,
        model: DualEncoder,
        images: FeatureCache | None,
        texts: FeatureCache | None,
        batch_size: int,
        device: torch.device,
    ) -> None:
        self._image, self._text = model.image_tower, model.text_tower
        self._image_cache, self._text_cache = images, texts
        self._batch_size = batch_size
        self._device = device

    def pooled(self, splits: Sequence[PreparedSplit]) -> list[Pooled]:
        """Of each split; kept features of the towers are used, and kept where there is room."""
        images = self._image_cache.images(self._image, splits) if self._image_cache else None
        texts = self._text_cache.texts(self._text, splits) if self._text_cache else None
        pooled = []
        for place, split in enumerate(splits):
            inputs = Inputs(split, images[place] if images else None, texts[place] if texts else None)
            pooled.append(Pooled(self._images(inputs), self._texts(inputs), split.image_of_caption, split.captions))
        return pooled

    def sentences(self, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]) -> Tensor:
        """The mean token (n, D) of each sentence."""
        found = []
        for start in range(0, len(sentences), self._batch_size):
            some = list(sentences[start : start + self._batch_size])
            made = tokenizer(some, padding=True, truncation=True, return_tensors="pt").to(self._device)
            found.append(self._mean_token(made["input_ids"], made["attention_mask"].bool()))
        return torch.cat(found)

    def _images(self, inputs: Inputs) -> Tensor:
        found = []
        for batch in self._batches("pool images", np.arange(len(inputs.split))):
            images = inputs.images(batch).to(self._device)
            tokens = images if images.is_floating_point() else self._image.features(images)
            # Rounded as what is kept, so that it makes no difference whether it is.
            found.append(normalize(tokens.half().float().mean(dim=1), dim=1).cpu())
        return torch.cat(found)

    def _texts(self, inputs: Inputs) -> Tensor:
        by_length = np.argsort(inputs.split.token_lengths, kind="stable")
        found = [
            self._mean_token(*(tensor.to(self._device) for tensor in inputs.texts(batch)))
            for batch in self._batches("pool captions", by_length)
        ]
        together = torch.cat(found)
        return torch.empty_like(together).index_copy_(0, torch.from_numpy(by_length), together)

    def _mean_token(self, texts: Tensor, mask: Tensor) -> Tensor:
        states = texts if texts.is_floating_point() else self._text.features(texts, mask)
        return normalize(masked_mean(states[:, :, -1].half().float(), mask), dim=1).cpu()

    def _batches(self, name: str, items: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        with progress(None, name, unit="item", total=len(items)) as bar:
            for start in range(0, len(items), self._batch_size):
                batch = items[start : start + self._batch_size]
                yield batch
                bar.update(len(batch))
