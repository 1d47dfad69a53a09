"""Words that the captions of an image are predicted to have, by ridge regression from its features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diptych.retrieval.pooled import Pooled, ridge_maps

VOCABULARY = 2_000
"""Number of words that may be predicted: the most frequent ones of the train captions, without function words."""


class WordPredictor:
    """Ridge regression from an image's features (C) to the share of its captions that have each of V words.

    Attributes:
        mean_length: mean length of a train caption, in words of the vocabulary.
        containing: (V,), the number of train captions that have each word.

    Args:
        train: the split to learn from.
        strengths: the strengths of regularization that `predicted` may be asked for.
    """

    def __init__(self, train: Pooled, strengths: Sequence[float]) -> None:
        # scikit-learn takes a second to import, and most baselines do without it.
        from scipy.sparse import csr_array
        from sklearn.feature_extraction.text import CountVectorizer

        self._vectorizer = CountVectorizer(
            token_pattern=r"[^\W\d_]+", stop_words="english", max_features=VOCABULARY, dtype=np.float32
        )
        try:
            self._vectorizer.fit(train.captions)
        except ValueError:
            # The captions consist of function words and signs.
            self._vectorizer.set_params(stop_words=None, token_pattern=r"\S+").fit(train.captions)
        self._vocabulary = self._vectorizer.get_feature_names_out()
        counts = self._vectorizer.transform(train.captions)
        self.mean_length = float(counts.sum()) / counts.shape[0]
        self.containing = torch.from_numpy(counts.astype(bool).sum(axis=0).A1)
        owner, images = train.image_of_caption, len(train.image)
        weight = np.ones(len(owner), np.float32) / np.bincount(owner, minlength=images)[owner]
        mean_of_captions = csr_array((weight, (owner, np.arange(len(owner)))), (images, len(owner)))
        share = torch.from_numpy((mean_of_captions @ csr_array(counts.astype(bool))).toarray().astype(np.float32))
        self._mean = train.image.mean(dim=0)
        self._maps = ridge_maps(train.image, share - share.mean(dim=0), strengths)

    def counts(self, captions: Sequence[str]) -> Tensor:
        """Return the number of times that each caption has each word, (M, V) float32."""
        return torch.from_numpy(self._vectorizer.transform(captions).toarray())

    def predicted(self, image: Tensor, strength: float, count: int) -> Tensor:
        """Return the scores (N, V) float32 of the `count` likeliest words of images (N, C), zero for all others.

        A score is the predicted share of captions with the word, minus its mean over the train images; at least 1e-6.
        """
        scores = (image - self._mean) @ self._maps[strength]
        best = scores.topk(min(count, scores.shape[1]), dim=1)
        return torch.zeros_like(scores).scatter_(1, best.indices, best.values.clamp(min=1e-6))

    def sentences(self, predicted: Tensor) -> list[str]:
        """Return the words that are `predicted` (N, V) for each image, the likeliest first."""
        order = predicted.argsort(dim=1, descending=True, stable=True)
        return [
            " ".join(self._vocabulary[words[: int(count)]])
            for words, count in zip(order.numpy(), torch.count_nonzero(predicted, dim=1), strict=True)
        ]
