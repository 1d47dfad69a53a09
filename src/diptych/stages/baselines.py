"""The baselines stage: ranks of the test queries by single modalities and by frozen towers.

The report compares the model with them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from diptych.config import Params
from diptych.data.inputs import Inputs
from diptych.data.prepared import Prepared, PreparedSplit
from diptych.model.device import Precision, choose_precision, prepare
from diptych.model.dual_encoder import DualEncoder, build_model
from diptych.model.lean_transformers import PreTrainedTokenizerFast
from diptych.model.pooling import masked_mean
from diptych.progress import progress
from diptych.project.workspace import Workspace
from diptych.retrieval.baselines import smoothed_baselines
from diptych.retrieval.embedding import inference
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.pooled import Pooled
from diptych.retrieval.ranking import Ranks, ranks_from_embeddings
from diptych.retrieval.stored_ranks import save_ranks
from diptych.training.features import FeatureCache

_log = logging.getLogger(__name__)

SEED = 0
"""Seed of towers without pretrained weights.

It is not the model's seed, so that a change of that one does not run the baselines again.
"""


def run(workspace: Workspace, params: Params) -> None:
    """Write the ranks of the test queries by each baseline into artifacts/baselines.npz.

    Raises:
        DiptychError: the prepared data, a pretrained tower or the device is missing.
    """
    device = prepare(params.device, params.threads)
    prepared = Prepared(workspace.prepared, params.data.splits)
    ranks = _test_ranks(workspace, params, prepared, device) if params.baselines.methods else {}
    save_ranks(workspace.baselines, ranks)


def _test_ranks(workspace: Workspace, params: Params, prepared: Prepared, device: torch.device) -> dict[str, Ranks]:
    """Fit each baseline to the pooled features of train and val, and rank the queries of test by it."""
    splits = [prepared.split(role) for role in ("train", "val", "test")]
    towers = _build_towers(workspace, params, prepared, device)
    train, val, test = towers.pooled(splits)
    encode = partial(towers.sentences, PreTrainedTokenizerFast.from_pretrained(workspace.tokenizer))
    fits = smoothed_baselines(params.train.objectives.label_smoothing)
    ranks: dict[str, Ranks] = {}
    # Baselines are fitted in float32. The towers' precision would give near items equal scores.
    for name in params.baselines.methods:
        begin = time.perf_counter()
        baseline = fits[name](train, val, encode)
        ranks[name] = ranks_from_embeddings(*baseline(test), test.image_of_caption)
        rsum, seconds = metrics_from_ranks(*ranks[name])["rsum"], time.perf_counter() - begin
        _log.info("%s: RSUM %.1f on test, fitted in %.1f s", name, rsum, seconds)
    return ranks


def _build_towers(workspace: Workspace, params: Params, prepared: Prepared, device: torch.device) -> FrozenTowers:
    """Build the towers before any training; features are stored only if the training can use them too."""
    train, precision = params.train, choose_precision("auto", device)
    torch.manual_seed(SEED)
    size, vocabulary = prepared.settings["image_size"], prepared.settings["vocabulary_size"]
    model = build_model(params.model, size, vocabulary, train.temperature).to(device)
    cache = None
    if train.keep_features != "never":
        limit = train.features_gib
        cache = FeatureCache(workspace.features, limit_gib=limit, device=device, precision=precision)
    return FrozenTowers(
        model,
        image_cache=cache if train.image_tower.is_frozen_at_first else None,
        text_cache=cache if train.text_tower.is_frozen_at_first else None,
        batch_size=params.evaluate.batch_size,
        device=device,
        precision=precision,
    )


@dataclass(frozen=True)
class FrozenTowers:
    """Both towers of a model in evaluation mode, which encode an image or text as its mean token, of unit length.

    Features in the caches are used, and computed ones are added; without a cache all are computed.
    """

    model: DualEncoder
    image_cache: FeatureCache | None
    text_cache: FeatureCache | None
    batch_size: int
    device: torch.device
    precision: Precision

    def pooled(self, splits: Sequence[PreparedSplit]) -> list[Pooled]:
        """Return the features of each split, float32 on the CPU."""
        with inference(self.model, self.device, self.precision):
            images = self.image_cache.images(self.model.image_tower, splits) if self.image_cache else None
            texts = self.text_cache.texts(self.model.text_tower, splits) if self.text_cache else None
            pooled = []
            for index, split in enumerate(splits):
                inputs = Inputs(split, images[index] if images else None, texts[index] if texts else None)
                pooled.append(Pooled(self._images(inputs), self._texts(inputs), split.image_of_caption, split.captions))
            return pooled

    def sentences(self, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]) -> Tensor:
        """Return the mean token of each of n sentences, (n, D) float32 on the CPU."""
        features = []
        with inference(self.model, self.device, self.precision):
            for start in range(0, len(sentences), self.batch_size):
                batch = list(sentences[start : start + self.batch_size])
                tokens = tokenizer(batch, padding=True, truncation=True, return_tensors="pt").to(self.device)
                features.append(self._mean_token(tokens["input_ids"], tokens["attention_mask"].bool()))
        return torch.cat(features)

    def _images(self, inputs: Inputs) -> Tensor:
        features = []
        for batch in self._batches("pool images", np.arange(len(inputs.split))):
            images = inputs.images(batch).to(self.device)
            tokens = images if images.is_floating_point() else self.model.image_tower.features(images)
            # Rounded like stored features, so that storing them makes no difference.
            features.append(normalize(tokens.half().float().mean(dim=1), dim=1).cpu())
        return torch.cat(features)

    def _texts(self, inputs: Inputs) -> Tensor:
        by_length = np.argsort(inputs.split.token_lengths, kind="stable")
        features = torch.cat(
            [
                self._mean_token(*(tensor.to(self.device) for tensor in inputs.texts(batch)))
                for batch in self._batches("pool captions", by_length)
            ]
        )
        return torch.empty_like(features).index_copy_(0, torch.from_numpy(by_length), features)

    def _mean_token(self, texts: Tensor, mask: Tensor) -> Tensor:
        states = texts if texts.is_floating_point() else self.model.text_tower.features(texts, mask)
        return normalize(masked_mean(states[:, :, -1].half().float(), mask), dim=1).cpu()

    def _batches(self, name: str, items: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        with progress(None, name, unit="item", total=len(items)) as bar:
            for start in range(0, len(items), self.batch_size):
                batch = items[start : start + self.batch_size]
                yield batch
                bar.update(len(batch))
