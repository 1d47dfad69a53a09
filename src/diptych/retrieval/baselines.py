"""Baselines: what images alone, words alone, and frozen towers joined in closed form or by learned heads retrieve.

No tower learns. Each baseline is fitted to the train split, has its settings chosen on val by the mean log rank, and
gives vectors whose inner products rank captions for images and images for captions, as those of the model do.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from sklearn.feature_extraction.text import CountVectorizer
from torch import Tensor, nn
from torch.nn.functional import normalize

from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.model.objectives import contrastive_loss
from diptych.retrieval.metrics import Found, Ranks, mean_log_rank, ranks_from_embeddings

NEIGHBOURS = (1, 3, 10, 30, 100)
RIDGES = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0)
"""Beside the mean variance of a feature."""
WORDS = (5, 10, 20, 40)
"""Predicted for an image."""
VOCABULARY = 2_000
"""Words that may be predicted: the most frequent ones of the train captions, English function words left out."""
POWERS = (0.0, 1.0, 2.0, 4.0)
"""Of the correlations, by which canonical directions are weighted: Gong et al., IJCV 2014, section 3.1."""
BM25_K1, BM25_B = 1.2, 0.75
DIM, HIDDEN = 512, 1024
"""Of the heads: of the space they meet in, and of the MLP's layer between."""
DROPOUT = 0.2
"""Of the features that the heads learn from, and of the MLP's layer between."""
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 12, 256, 1e-3, 0.1
"""Of the heads; a batch is so many images with all of their captions."""
ROWS = 4096
"""Taken at once."""


class Pooled(NamedTuple):
    """A split by what frozen single-modality towers say of it."""

    image: Tensor
    """(N, C) float32, the mean of an image's tokens, of length one."""
    text: Tensor
    """(M, D) float32, the mean of a caption's tokens, of length one."""
    image_of_caption: NDArray[np.int64]
    """(M,), each caption's image."""
    captions: Sequence[str]
    """(M,)."""


Baseline = Callable[[Pooled], tuple[Tensor, Tensor]]
"""Vectors of a split's images and captions, to be ranked by inner product."""
Encode = Callable[[Sequence[str]], Tensor]
"""The text tower's mean token (n, D) of sentences, of length one."""


def prior(train: Pooled, val: Pooled, encode: Encode) -> Baseline:
    """What is typical comes first, whatever the query: the floor that is not chance."""
    image, text = (normalize(side.mean(dim=0), dim=0) for side in (train.image, train.text))

    def rank(split: Pooled) -> tuple[Tensor, Tensor]:
        of_image, of_text = normalize(split.image, dim=1) @ image, normalize(split.text, dim=1) @ text
        ones = torch.ones(len(of_image)), torch.ones(len(of_text))
        return torch.stack([of_image, ones[0]], dim=1), torch.stack([ones[1], of_text], dim=1)

    return rank


def image_only(train: Pooled, val: Pooled, encode: Encode) -> Baseline:
    """The nearest training images lend their captions, which are compared with captions as texts."""
    lent = _directions(_of_captions(train, train.text), train.text)
    images = _directions(train.image, train.image)

    def with_neighbours(count: int) -> Baseline:
        def rank(split: Pooled) -> tuple[Tensor, Tensor]:
            found = []
            for some in _directions(split.image, train.image).split(ROWS):
                near = (some @ images.T).topk(min(count, len(images)), dim=1).indices
                found.append(lent[near].mean(dim=1))
            return normalize(torch.cat(found), dim=1), _directions(split.text, train.text)

        return rank

    return _best((with_neighbours(count) for count in NEIGHBOURS), val)


def words_bm25(train: Pooled, val: Pooled, encode: Encode) -> Baseline:
    """Words are predicted for an image, and captions ranked by BM25 (Robertson and Zaragoza 2009, section 3.2)."""
    words = _Words(train)
    captions = len(train.captions)
    rarity = torch.log1p((captions - words.containing + 0.5) / (words.containing + 0.5))

    def with_words(ridge: float, count: int) -> Baseline:
        def rank(split: Pooled) -> tuple[Tensor, Tensor]:
            found = words.counts(split.captions)
            saturation = BM25_K1 * (1 - BM25_B + BM25_B * found.sum(dim=1, keepdim=True) / words.mean_length)
            return words.predicted(split.image, ridge, count), rarity * found * (BM25_K1 + 1) / (found + saturation)

        return rank

    return _best((with_words(*both) for both in product(RIDGES, WORDS)), val)


def words_text_tower(train: Pooled, val: Pooled, encode: Encode) -> Baseline:
    """Words are predicted for an image, and read by the text tower as if they were a caption."""
    words = _Words(train)

    def with_words(ridge: float, count: int) -> Baseline:
        def rank(split: Pooled) -> tuple[Tensor, Tensor]:
            sentences = words.sentences(words.predicted(split.image, ridge, count))
            return _directions(encode(sentences), train.text), _directions(split.text, train.text)

        return rank

    return _best((with_words(*both) for both in product(RIDGES, WORDS[:3])), val)


def ridge(train: Pooled, val: Pooled, encode: Encode) -> Baseline:
    """Ridge regression from the images' features to those of their captions."""
    target = _of_captions(train, train.text)
    maps = _ridge_maps(train.image, target - train.text.mean(dim=0))

    def with_map(weights: Tensor) -> Baseline:
        return lambda split: (
            normalize((split.image - train.image.mean(dim=0)) @ weights, dim=1),
            _directions(split.text, train.text),
        )

    return _best((with_map(weights) for weights in maps.values()), val)


def cca(train: Pooled, val: Pooled, encode: Encode) -> Baseline:
    """Canonical correlation analysis of images and captions (Hotelling 1936), regularized."""
    captions = torch.from_numpy(np.bincount(train.image_of_caption, minlength=len(train.image)))[:, None]
    total = len(train.text)
    means = (train.image * captions).sum(dim=0) / total, train.text.mean(dim=0)
    image, text = train.image - means[0], train.text - means[1]
    covariances = _gram(image, image * captions) / total, _gram(text, text) / total
    shared = _gram(image, _of_captions(train, text) * captions) / total

    def with_ridge(strength: float) -> Iterable[Baseline]:
        roots = [torch.linalg.cholesky(_ridged(covariance, strength)) for covariance in covariances]
        cross = torch.linalg.solve_triangular(roots[0], shared, upper=False)
        cross = torch.linalg.solve_triangular(roots[1], cross.T, upper=False).T
        left, correlations, right = torch.linalg.svd(cross, full_matrices=False)
        directions = [
            torch.linalg.solve_triangular(root.T, side, upper=True)
            for root, side in zip(roots, (left, right.T), strict=True)
        ]
        for power in POWERS:
            weighted = [(of_side * correlations**power).float() for of_side in directions]
            yield lambda split, weighted=weighted: (  # type: ignore[misc]
                normalize((split.image - means[0]) @ weighted[0], dim=1),
                normalize((split.text - means[1]) @ weighted[1], dim=1),
            )

    return _best((fitted for strength in RIDGES for fitted in with_ridge(strength)), val)


def linear_heads(train: Pooled, val: Pooled, encode: Encode) -> Baseline:
    """A linear map of each side into one space, learned by the contrastive loss."""
    return _best(_learned(train, lambda channels: [nn.Linear(channels, DIM)]), val)


def mlp_heads(train: Pooled, val: Pooled, encode: Encode) -> Baseline:
    """As `linear_heads`, with a layer between."""

    def layers(channels: int) -> list[nn.Module]:
        return [nn.Linear(channels, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, DIM)]

    return _best(_learned(train, layers), val)


BASELINES: dict[str, Callable[[Pooled, Pooled, Encode], Baseline]] = {
    fit.__name__: fit for fit in (prior, image_only, words_bm25, words_text_tower, ridge, cca, linear_heads, mlp_heads)
}


def save_ranks(path: Path, ranks: dict[str, Ranks]) -> None:
    """Writes what the queries of a split found by each baseline."""
    arrays = {
        f"{name}.{way}.{field}": values
        for name, both in ranks.items()
        for way, found in both._asdict().items()
        for field, values in found._asdict().items()
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)


def load_ranks(path: Path, images: int, captions: int) -> dict[str, Ranks]:
    """As `save_ranks` wrote them, of a split with so many images and captions.

    Raises:
        DiptychError: the file is missing or damaged, or of another split.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {
                name: Ranks(
                    *(Found(*(arrays[f"{name}.{way}.{field}"] for field in Found._fields)) for way in Ranks._fields)
                )
                for name in dict.fromkeys(key.partition(".")[0] for key in arrays)
            }
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile, zlib.error) as error:
        raise DiptychError(f"{path} is missing or damaged ({error}). Run `dvc repro {path.stem}`.") from None
    for name, both in found.items():
        if (len(both.i2t.rank), len(both.t2i.rank)) != (images, captions):
            raise DiptychError(f"{path} holds {name} of another test split. Run `dvc repro {path.stem}`.")
    return found


class _Words:
    """Predicts from an image's features which words its captions have, by ridge regression."""

    def __init__(self, train: Pooled) -> None:
        self._vectorizer = CountVectorizer(
            token_pattern=r"[^\W\d_]+", stop_words="english", max_features=VOCABULARY, dtype=np.float32
        )
        try:
            self._vectorizer.fit(train.captions)
        except ValueError:
            # Captions of nothing but function words and signs.
            self._vectorizer.set_params(stop_words=None, token_pattern=r"\S+").fit(train.captions)
        self._vocabulary = self._vectorizer.get_feature_names_out()
        counts = self._vectorizer.transform(train.captions)
        self.mean_length = float(counts.sum()) / counts.shape[0]
        """Of a train caption, in words of the vocabulary."""
        self.containing = torch.from_numpy(counts.astype(bool).sum(axis=0).A1)
        """Train captions that have each word, (V,)."""
        own, images = train.image_of_caption, len(train.image)
        each = np.ones(len(own), np.float32) / np.bincount(own, minlength=images)[own]
        share = csr_array((each, (own, np.arange(len(own)))), (images, len(own))) @ csr_array(counts.astype(bool))
        share = torch.from_numpy(share.toarray().astype(np.float32))
        self._mean = train.image.mean(dim=0)
        self._maps = _ridge_maps(train.image, share - share.mean(dim=0))

    def counts(self, captions: Sequence[str]) -> Tensor:
        """How often each caption has each word, (M, V) float32."""
        return torch.from_numpy(self._vectorizer.transform(captions).toarray())

    def predicted(self, image: Tensor, ridge: float, count: int) -> Tensor:
        """The `count` words that an image has most beyond what is usual, (N, V) float32, and zero elsewhere."""
        beyond = (image - self._mean) @ self._maps[ridge]
        best = beyond.topk(min(count, beyond.shape[1]), dim=1)
        return torch.zeros_like(beyond).scatter_(1, best.indices, best.values.clamp(min=1e-6))

    def sentences(self, predicted: Tensor) -> list[str]:
        """The words of each image, the likeliest first."""
        order = predicted.argsort(dim=1, descending=True, stable=True)
        return [
            " ".join(self._vocabulary[words[: int(count)]])
            for words, count in zip(order.numpy(), torch.count_nonzero(predicted, dim=1), strict=True)
        ]


class _Heads(nn.Module):
    """A head for each side, and the scale of the cosines of what they give."""

    def __init__(self, train: Pooled, layers: Callable[[int], list[nn.Module]]) -> None:
        super().__init__()
        self._means = [side.mean(dim=0) for side in (train.image, train.text)]
        # Features as large as first weights are made for.
        self._deviations = [
            (side - mean).square().mean().sqrt().clamp(min=1e-12)
            for side, mean in zip((train.image, train.text), self._means, strict=True)
        ]
        self.sides = nn.ModuleList(
            nn.Sequential(nn.Dropout(DROPOUT), *layers(side.shape[1])) for side in (train.image, train.text)
        )
        self.log_scale = nn.Parameter(torch.tensor(14.3).log())

    def forward(self, image: Tensor, text: Tensor) -> list[Tensor]:
        """Features (B, C) and (M, D) to vectors (B, `DIM`) and (M, `DIM`) float32, of length one."""
        given = zip(self.sides, (image, text), self._means, self._deviations, strict=True)
        return [normalize(head((features - mean) / deviation), dim=1) for head, features, mean, deviation in given]

    @torch.no_grad()
    def rank(self, split: Pooled) -> tuple[Tensor, Tensor]:
        """As a `Baseline`."""
        rows = max(len(split.image), len(split.text))
        parts = [
            self(split.image[start : start + ROWS], split.text[start : start + ROWS]) for start in range(0, rows, ROWS)
        ]
        image, text = (torch.cat(side) for side in zip(*parts, strict=True))
        return image, text


def _learned(train: Pooled, layers: Callable[[int], list[nn.Module]]) -> Iterator[Baseline]:
    """Heads of these `layers`, as they are after each epoch."""
    own = torch.from_numpy(train.image_of_caption)
    place = torch.full((len(train.image),), -1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = _Heads(train, layers)
        optimizer = torch.optim.AdamW(heads.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * -(-len(place) // BATCH))
        for _ in range(EPOCHS):
            for images in torch.randperm(len(place)).split(BATCH):
                place.fill_(-1)[images] = torch.arange(len(images))
                captions = torch.nonzero(place[own] >= 0).flatten()
                image, text = heads.train()(train.image[images], train.text[captions])
                contrastive_loss(image, text, place[own[captions]], heads.log_scale.exp()).backward()
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            yield copy.deepcopy(heads).eval().rank


def _best(fitted: Iterable[Baseline], val: Pooled) -> Baseline:
    """The one with the lowest mean log rank on val; of equals the first."""

    def on_val(baseline: Baseline) -> float:
        return mean_log_rank(*ranks_from_embeddings(*baseline(val), val.image_of_caption).ranks)

    return min(fitted, key=on_val)


def _of_captions(split: Pooled, text: Tensor) -> Tensor:
    """The mean of the text features (M, D) of each image's captions, (N, D)."""
    own = torch.from_numpy(split.image_of_caption)
    sums = torch.zeros(len(split.image), text.shape[1]).index_add_(0, own, text)
    return sums / torch.bincount(own, minlength=len(sums))[:, None]


def _directions(features: Tensor, train: Tensor) -> Tensor:
    """Of length one, seen from the mean of `train`."""
    return normalize(features - train.mean(dim=0), dim=1)


def _ridge_maps(features: Tensor, target: Tensor) -> dict[float, Tensor]:
    """By strength, the weights (C, D) float32 that take centred `features` (N, C) to `target` (N, D)."""
    centred = features - features.mean(dim=0)
    covariance, cross = _gram(centred, centred) / len(centred), _gram(centred, target) / len(centred)
    return {strength: torch.linalg.solve(_ridged(covariance, strength), cross).float() for strength in RIDGES}


def _gram(left: Tensor, right: Tensor) -> Tensor:
    """leftᵀ·right (C, D) float64, of (n, C) and (n, D), without another precision of all of them."""
    sums = torch.zeros(left.shape[1], right.shape[1], dtype=torch.float64)
    for some, others in zip(left.split(ROWS), right.split(ROWS), strict=True):
        sums += some.double().T @ others.double()
    return sums


def _ridged(covariance: Tensor, strength: float) -> Tensor:
    """With `strength` of the mean variance added to each."""
    size = len(covariance)
    variance = max(float(covariance.trace()) / size, 1e-12)
    return covariance + strength * variance * torch.eye(size, dtype=covariance.dtype)
