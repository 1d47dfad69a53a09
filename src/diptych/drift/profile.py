"""Profile of a set of pairs: distributions of simple statistics, its words, and a sample of its embeddings.

The profile of a model's training data is stored with the model's run, to compare incoming pairs with. Embeddings are
stored as a sample, not as a mean and a covariance: samples show any difference, and 500 pairs are smaller than a
covariance of their 2 d dimensions. The sample is from val, which the model has not seen either: a model embeds
memorized training pairs differently from new ones.
"""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diptych.config import Params
from diptych.data.accepted import Accepted, images_of_role
from diptych.drift.pairs import PICTURES, embed_pairs, picture_statistics
from diptych.drift.quantiles import Sketch

FORMAT = 1
SAMPLE = 2000
"""Number of images that are opened: enough to know distances to a few hundredths."""
EMBEDDED = 500
"""Number of pairs that are embedded."""
VOCABULARY = 50_000
"""Number of the most frequent words that are stored."""
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


@dataclass(frozen=True, eq=False)
class Embedded:
    """Embeddings of a sample of pairs by the model with these weights, float16 (n, 2 d)."""

    weights_sha256: str
    pairs: NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Profile:
    """Profile of a set of pairs.

    Attributes:
        images, captions: the number of images and of captions.
        statistics: distributions over the images or captions, by name.
        words: the number of occurrences of each of the most frequent words.
        word_count: the number of all words.
        unknown_words: share of the words that occur in the captions of one image only. New pairs of the same kind are
            expected to have the same share (Good, Biometrika 40, 1953, but leaving out images one at a time, not
            words).
        contents: first 32 bits of each image's SHA-256, sorted, uint32 (images,), which identify known images.
        embedded: embeddings of a sample; None where no model was given.
    """

    images: int
    captions: int
    statistics: dict[str, Sketch]
    words: dict[str, int]
    word_count: int
    unknown_words: float
    contents: NDArray[np.uint32]
    embedded: Embedded | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        embedded = self.embedded and {
            "weights_sha256": self.embedded.weights_sha256,
            "dimensions": self.embedded.pairs.shape[1],
            "pairs": to_text(self.embedded.pairs.astype("<f2")),
        }
        return {
            "format": FORMAT,
            "images": self.images,
            "captions": self.captions,
            "statistics": {name: sketch.to_json() for name, sketch in self.statistics.items()},
            "words": self.words,
            "word_count": self.word_count,
            "unknown_words": self.unknown_words,
            "contents": to_text(self.contents.astype("<u4")),
            "embedded": embedded,
        }

    @classmethod
    def from_json(cls, content: Any) -> Profile:
        """Return the profile that `to_json` has written.

        Raises:
            ValueError: `content` is something else.
        """
        try:
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']}, not {FORMAT}")
            embedded = content["embedded"]
            return cls(
                images=int(content["images"]),
                captions=int(content["captions"]),
                statistics={name: Sketch.from_json(sketch) for name, sketch in content["statistics"].items()},
                words={str(word): int(count) for word, count in content["words"].items()},
                word_count=int(content["word_count"]),
                unknown_words=float(content["unknown_words"]),
                contents=from_text(content["contents"], "<u4").astype(np.uint32),
                embedded=embedded
                and Embedded(
                    embedded["weights_sha256"],
                    from_text(embedded["pairs"], "<f2").reshape(-1, int(embedded["dimensions"])),
                ),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no profile: {error!r}") from None


def make_profile(
    accepted: Accepted, params: Params, images: Collection[int] | None = None, model: Path | None = None
) -> Profile:
    """Return the profile of the accepted images with these ids and of their captions, embedded by `model`.

    Without ids it is the profile of the train split, with embeddings of the val split. Without a model's folder there
    are no embeddings.

    Raises:
        DiptychError: a shard is missing, or the folder holds no whole model.
    """
    manifest, captions = accepted.images, accepted.captions
    if images is None:
        chosen, to_embed = (images_of_role(manifest, params.data.splits, role) for role in ("train", "val"))
    else:
        chosen = to_embed = manifest[manifest["image_id"].isin(list(images))]
    texts = captions[captions["image_id"].isin(chosen["image_id"])]
    words = [split_words(text) for text in texts["caption"]]
    counts, total, unknown = vocabulary(texts["image_id"].tolist(), words)
    return Profile(
        images=len(chosen),
        captions=len(texts),
        statistics=_statistics(accepted.data, params, chosen, [len(caption) for caption in words]),
        words=counts,
        word_count=total,
        unknown_words=unknown,
        contents=np.sort(_contents(chosen)),
        embedded=_embed(accepted.data, params, to_embed, captions, model) if model and len(to_embed) else None,
    )


def new_images(accepted: Accepted, params: Params, reference: Profile) -> list[int]:
    """Return the ids of the accepted train images that are not among those of `reference`."""
    train = images_of_role(accepted.images, params.data.splits, "train")
    return train["image_id"][~np.isin(_contents(train), reference.contents)].tolist()


def gone_images(accepted: Accepted, params: Params, reference: Profile) -> int:
    """Return the number of images of `reference` that are no longer among the accepted train images."""
    train = images_of_role(accepted.images, params.data.splits, "train")
    return int((~np.isin(reference.contents, _contents(train))).sum())


def added_captions(accepted: Accepted, params: Params, reference: Profile) -> int:
    """Return by how many the accepted train captions are more than those of `reference`; 0 where they are fewer."""
    train = images_of_role(accepted.images, params.data.splits, "train")
    return max(0, int(accepted.captions["image_id"].isin(train["image_id"]).sum()) - reference.captions)


def _statistics(data: Path, params: Params, images: pd.DataFrame, lengths: list[int]) -> dict[str, Sketch]:
    pictures = picture_statistics(data, _sample(images, SAMPLE), params.threads)
    return {
        **{name: Sketch.of(pictures[:, column]) for column, name in enumerate(PICTURES)},
        "width": Sketch.of(images["width"]),
        "height": Sketch.of(images["height"]),
        # The captions of an image are alike, so the number of independent ones is that of the images.
        "words a caption": Sketch.of(lengths, len(images)),
    }


def _embed(data: Path, params: Params, images: pd.DataFrame, captions: pd.DataFrame, model: Path) -> Embedded:
    from diptych.model.device import choose_device
    from diptych.model.package import weights_sha256

    sample = _sample(images, EMBEDDED)
    first = captions.groupby("image_id")["caption"].first()
    texts = first.loc[sample["image_id"]].tolist()
    pairs = embed_pairs(data, sample, texts, model, str(choose_device(params.device)))
    return Embedded(weights_sha256(model), pairs)


def _sample(images: pd.DataFrame, size: int) -> pd.DataFrame:
    """Return at most `size` images, chosen by content: the same images give the same sample."""
    return images.sort_values("sha256", kind="stable").head(size)


def split_words(text: str) -> list[str]:
    """Return the words of a text in their order, in lower case and without punctuation."""
    return _WORD.findall(text.lower())


def vocabulary(image_ids: list[int], captions: list[list[str]]) -> tuple[dict[str, int], int, float]:
    """Return counts of the most frequent words, the number of all words, and the share that only one image has."""
    counts: Counter[str] = Counter()
    only: dict[str, int | None] = {}
    for image, words in zip(image_ids, captions, strict=True):
        counts.update(words)
        for word in words:
            if only.setdefault(word, image) != image:
                only[word] = None
    total = counts.total()
    # Equally frequent words are in alphabetical order.
    frequent = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:VOCABULARY])
    known = sum(count for word, count in frequent.items() if only[word] is None)
    return frequent, total, 1 - known / total if total else 0.0


def _contents(images: pd.DataFrame) -> NDArray[np.uint32]:
    return np.array([int(sha256[:8], 16) for sha256 in images["sha256"]], np.uint32)


def to_text(values: NDArray[Any]) -> str:
    """Return the bytes of an array as base64, for JSON."""
    return base64.b64encode(values.tobytes()).decode("ascii")


def from_text(text: str, dtype: str) -> NDArray[Any]:
    """Return the values (n,) that `to_text` has written.

    Raises:
        ValueError: the text is no base64, or has part of a value.
    """
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)
