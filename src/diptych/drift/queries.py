"""Profile of the texts that a model is searched with, and their distance from the captions that it learned from.

Repeated searches would make any distance look certain. So the sample is of different texts: those with the smallest
hashes (bottom-k sampling; Cohen and Kaplan, PODC 2007). It is uniform, depends neither on the order of the searches nor
on random draws, and two samples unite to the sample of both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.drift.distance import LEVEL, UNKNOWN, Distance, embeddings_distance, words_distance
from diptych.drift.profile import EMBEDDED, Profile, from_text, split_words, to_text

FORMAT = 1
SAMPLE = EMBEDDED
"""Number of different texts that are kept, as many as there are captions to compare them with."""
_KEY = 16
"""Hexadecimal digits of a text's hash."""
_LARGEST = 2**53
"""Largest number of texts or words; a larger one of a damaged file would be no float."""


class SampledText(NamedTuple):
    """What is kept of a text: the number of its words, that of its unknown words, and its embedding float16 (d,)."""

    words: int
    unknown: int
    embedding: NDArray[np.float16]


class Wording(NamedTuple):
    """Words of texts: their mean number in a text, and the share that the training captions lack, from 0 to 1.

    The share of queries is the mean of the texts' shares, so that a few long texts do not outweigh many short ones. The
    number is no distance: queries are shorter than captions everywhere, and no training changes that.
    """

    words: float
    unknown: float


@dataclass(frozen=True, eq=False)
class QueryProfile:
    """Profile of the texts that one model was searched with. It holds no text.

    Attributes:
        model_sha256: SHA-256 of the model's files.
        texts: the number of searches by a text.
        sample: at most `SAMPLE` different texts by their hashes, ascending. Texts of the same words are the same.
    """

    model_sha256: str
    texts: int = 0
    sample: dict[str, SampledText] = field(default_factory=dict)

    @property
    def wording(self) -> Wording:
        """Words of the sample's texts; zeros without words."""
        shares = [text.unknown / text.words for text in self.sample.values() if text.words]
        words = sum(text.words for text in self.sample.values())
        return Wording(words / len(self.sample), sum(shares) / len(shares)) if shares else Wording(0.0, 0.0)

    @property
    def dimensions(self) -> int | None:
        """Number of dimensions of the embeddings; None without texts."""
        return next((len(text.embedding) for text in self.sample.values()), None)

    @property
    def embeddings(self) -> NDArray[np.float16]:
        """Embeddings of the sample (n, d), of which there is at least one, in the random order of the hashes."""
        return np.stack([text.embedding for text in self.sample.values()])

    def with_text(self, text: str, embedding: NDArray[np.float32], known: Container[str]) -> QueryProfile:
        """Return the profile with one more search; where the sample stays as it is, it is the same object.

        Args:
            text: what was searched for.
            embedding: its embedding by the model, (d,).
            known: the words of the model's training captions.
        """
        words = split_words(text)
        key = hashlib.sha256(" ".join(words).encode()).hexdigest()[:_KEY]
        sample = self.sample
        if key not in sample and (len(sample) < SAMPLE or key < next(reversed(sample))):
            new = SampledText(len(words), sum(word not in known for word in words), embedding.astype(np.float16))
            sample = _smallest({**sample, key: new})
        return replace(self, texts=self.texts + 1, sample=sample)

    def united(self, other: QueryProfile, texts: int) -> QueryProfile:
        """Return the profile with the texts of another one of this model; `texts` is the number of all searches."""
        if other.sample.keys() <= self.sample.keys():
            return replace(self, texts=texts)
        return replace(self, texts=texts, sample=_smallest({**other.sample, **self.sample}))

    def to_json(self) -> dict[str, Any]:
        """Return plain values; there is at least one text."""
        embeddings = self.embeddings
        return {
            "format": FORMAT,
            "model_sha256": self.model_sha256,
            "texts": self.texts,
            "keys": list(self.sample),
            "words": [text.words for text in self.sample.values()],
            "unknown": [text.unknown for text in self.sample.values()],
            "dimensions": embeddings.shape[1],
            "embeddings": to_text(embeddings.astype("<f2")),
        }

    @classmethod
    def from_json(cls, content: Any) -> QueryProfile:
        """Return the profile that `to_json` has written.

        Raises:
            ValueError: `content` is something else.
        """
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, not {FORMAT}")
            keys, words, unknown = (content[name] for name in ("keys", "words", "unknown"))
            rows = from_text(content["embeddings"], "<f2").reshape(len(keys), int(content["dimensions"]))
            texts = (SampledText(int(all_), int(new), row) for all_, new, row in zip(words, unknown, rows, strict=True))
            sample = _smallest(dict(zip(map(str, keys), texts, strict=True)))
            profile = cls(str(content["model_sha256"]), int(content["texts"]), sample)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
            raise ValueError(f"no profile of queries: {error!r}") from None
        profile._require_possible()
        return profile

    def _require_possible(self) -> None:
        """Raise ValueError for numbers and embeddings that no queries have."""
        if not 0 <= self.texts <= _LARGEST:
            raise ValueError("the number of texts is negative or too large")
        for text in self.sample.values():
            if not 0 <= text.unknown <= text.words <= _LARGEST:
                raise ValueError("the numbers of words and of unknown words of a text do not fit")
            if not np.isfinite(text.embedding).all():
                raise ValueError("an embedding is not finite")


@dataclass(frozen=True)
class QueryDrift:
    """Distances of queries from the captions that a model learned from.

    Attributes:
        texts: the number of searches by a text.
        compared: the number of different texts that are compared.
        queries, captions: words of these texts, and of the captions, whose unknown words are those of `Profile`.
        distances: distances of the unknown words, and of the embeddings where those of captions are known; none without
            texts.
    """

    texts: int
    compared: int
    queries: Wording
    captions: Wording
    distances: tuple[Distance, ...]

    @property
    def reasons(self) -> list[str]:
        """A sentence on unknown words, if they have drifted.

        The distance of embeddings is no reason to train: queries of a few words are far from captions also where they
        are about the same images, and no training changes that.
        """
        return [item.describe("queries") for item in self.distances if item.name == UNKNOWN and item.drifted]


def compare_queries(reference: Profile, queries: QueryProfile, limit: float) -> QueryDrift:
    """Return the distances of `queries` from the captions of `reference`, the profile of the same model.

    Where nothing has drifted, any of them exceeds what chance explains with probability `LEVEL` at most (Bonferroni).
    """
    captions = Wording(reference.word_count / max(1, reference.captions), reference.unknown_words)
    distances = _distances(reference, queries, limit) if queries.sample else ()
    return QueryDrift(queries.texts, len(queries.sample), queries.wording, captions, tuple(distances))


def caption_dimensions(reference: Profile) -> int | None:
    """Return the number of dimensions of the captions' embeddings; None where none are known."""
    return reference.embedded.pairs.shape[1] // 2 if reference.embedded else None


def _distances(reference: Profile, queries: QueryProfile, limit: float) -> list[Distance]:
    embedded = reference.embedded
    level = LEVEL / (1 + (embedded is not None))
    # The bound is for a mean of as many values, and a text without words has none.
    worded = sum(text.words > 0 for text in queries.sample.values())
    distances = [words_distance(reference, queries.wording.unknown, worded, level, limit)]
    if embedded is not None:
        captions = embedded.pairs[:, caption_dimensions(reference) :]
        distances.append(embeddings_distance(captions, queries.embeddings, level, limit))
    return distances


def _smallest(sample: Mapping[str, SampledText]) -> dict[str, SampledText]:
    return dict(sorted(sample.items())[:SAMPLE])
