"""Where retrieval fails: recalls of parts of the queries, and items that crowd the rankings of many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.retrieval.evaluation import Evaluation
from diptych.retrieval.metrics import Ranks, recall_at_k
from diptych.retrieval.uncertainty import RESAMPLES, draws, interval_ends, resample_counts

PARTS = 3
"""Of an attribute's values, about equally many queries in each."""
KS = (1, 10)
FIRST = 10
"""Places that count for a hub."""
SHOWN = 8
"""Hubs, pairs of confused images, and queries that miss most."""
CATEGORIES = 12
"""Of the objects in images, the most frequent ones, are sliced by."""
FEWEST = 10
"""Images of a slice: of fewer an interval says nothing."""
ALIKE_BITS = 8
"""Of 64."""


class Part(NamedTuple):
    """Queries of one direction that have something in common."""

    attribute: str
    label: str
    way: str
    """i2t or t2i."""
    queries: NDArray[np.bool_]
    """(Q,), which of the direction's queries they are."""


class Slice(NamedTuple):
    """How a part of the queries fares."""

    attribute: str
    label: str
    way: str
    """i2t or t2i."""
    queries: int
    recalls: dict[str, tuple[float, float, float]]
    """Recall@1 and @10 in percent, each with the ends of its interval."""
    worse: bool
    """Whether even the upper end of recall@10 is below the recall@10 of all queries of this direction."""


class Confusion(NamedTuple):
    """Two images of which the one is found for captions of the other."""

    image: int
    other: int
    captions: int
    """Of both, that find the wrong one first."""
    near_duplicates: bool = False
    """Whether their perceptual hashes differ in at most `ALIKE_BITS`."""


class Hubs(NamedTuple):
    """How often items are among the first ten of a query, of the queries of one direction."""

    often: NDArray[np.int64]
    """(items,)"""
    expected: float
    """If all were found alike."""

    @property
    def never(self) -> float:
        """Percent of the items that no query finds."""
        return 100.0 * float(np.mean(self.often == 0))

    def most(self, count: int) -> list[int]:
        """The items that are found most often; of equals the first ones."""
        order: list[int] = np.argsort(-self.often, kind="stable")[:count].tolist()
        return order


class Failures(NamedTuple):
    """Where the last stage of an evaluation fails."""

    slices: list[Slice]
    hubs: dict[str, Hubs]
    """Captions that images find (i2t), and images that captions find (t2i)."""
    confusions: list[Confusion]
    """The most frequent ones."""
    missed: dict[str, list[tuple[int, int]]]
    """The queries of each direction whose right item comes last, each with its rank."""

    def to_json(self) -> dict[str, Any]:
        """What reports/failures.json holds; images and captions are named by their places in the split."""
        return {
            "slices": [one._asdict() for one in self.slices],
            "hubs": {
                way: {
                    "expected": hubs.expected,
                    "never_percent": hubs.never,
                    "most": [{"item": item, "queries": int(hubs.often[item])} for item in hubs.most(SHOWN)],
                }
                for way, hubs in self.hubs.items()
            },
            "confusions": [one._asdict() for one in self.confusions],
            "missed": {
                way: [{"query": query, "rank": rank} for query, rank in queries] for way, queries in self.missed.items()
            },
        }


def find_failures(
    evaluation: Evaluation,
    image_of_caption: NDArray[np.int64],
    captions: Sequence[str],
    of_images: Mapping[str, NDArray[np.float64]],
    hashes: Sequence[str] | None = None,
    objects: Sequence[Sequence[str] | None] = (),
) -> Failures:
    """Of the last stage of `evaluation`.

    Args:
        image_of_caption: (M,), each caption's image.
        captions: the texts (M).
        of_images: attributes of the images by name, (N,) each.
        hashes: perceptual hashes of the images (N), 16 hexadecimal digits each.
        objects: the categories of what is in each image (N), once an object; None where that is not known.
    """
    *_, ranks = evaluation.ranks.values()
    images = len(ranks.i2t.rank)
    image_first, caption_first = evaluation.first
    found = confusions(caption_first, image_of_caption)[:SHOWN]
    return Failures(
        slices(ranks, image_of_caption, parts(image_of_caption, captions, of_images, objects)),
        {"i2t": hubs(image_first, images, len(captions)), "t2i": hubs(caption_first, len(captions), images)},
        [Confusion(*pair, hashes is not None and _alike(*(hashes[image] for image in pair[:2]))) for pair in found],
        {way: _missed(one_way.rank) for way, one_way in ranks._asdict().items()},
    )


def _missed(ranks: NDArray[np.int64]) -> list[tuple[int, int]]:
    """The queries whose `ranks` (Q,) are the highest, beyond the first ten; of equals the first ones."""
    order = np.argsort(-ranks, kind="stable")[:SHOWN].tolist()
    return [(query, int(ranks[query])) for query in order if ranks[query] > FIRST]


def parts(
    image_of_caption: NDArray[np.int64],
    captions: Sequence[str],
    of_images: Mapping[str, NDArray[np.float64]],
    objects: Sequence[Sequence[str] | None] = (),
) -> list[Part]:
    """The queries of both directions by what their image is like, those of captions by their words too.

    Args:
        image_of_caption: (M,), each caption's image.
        captions: the texts (M).
        of_images: attributes by name, (N,) each. NaN, where it is not known, is in no part.
        objects: as `find_failures` says; parts by them may overlap.
    """
    if any(objects):
        counts = np.array([np.nan if there is None else len(there) for there in objects])
        of_images = {**of_images, "objects in the image": counts}
    words = np.array([len(caption.split()) for caption in captions], float)
    made: list[Part] = []
    for name, values in of_images.items():
        cuts = cut(values)
        made += [Part(name, label, "i2t", there) for label, there in cuts]
        made += [Part(name, label, "t2i", there[image_of_caption]) for label, there in cuts]
    showing = _showing(objects)
    made += [Part("an image that shows", name, "i2t", there) for name, there in showing.items()]
    made += [Part("an image that shows", name, "t2i", there[image_of_caption]) for name, there in showing.items()]
    made += [Part("words in the caption", label, "t2i", there) for label, there in cut(words)]
    return [part for part in made if _images_of(part, image_of_caption) >= FEWEST]


def slices(ranks: Ranks, image_of_caption: NDArray[np.int64], parts: Sequence[Part]) -> list[Slice]:
    """Recalls of `parts` of the queries.

    Args:
        ranks: of N images and M captions.
        image_of_caption: (M,), each caption's image.
    """
    if not parts:
        return []
    brought = np.concatenate([part_counts(part, ranks, image_of_caption, KS) for part in parts], axis=1)
    images = len(brought)
    samples = np.concatenate(
        [resample_counts(drawn, images) @ brought for drawn in draws(images, RESAMPLES, seed=0)]
    ).reshape(RESAMPLES, len(parts), 1 + len(KS))
    overall = {way: recall_at_k(getattr(ranks, way).rank, KS[-1]) for way in ("i2t", "t2i")}
    found = []
    for place, (name, label, way, there) in enumerate(parts):
        own = getattr(ranks, way).rank[there]
        # A resample may hold none of these queries.
        drawn = samples[samples[:, place, 0] > 0, place]
        recalls = {
            f"recall@{k}": (recall_at_k(own, k), *interval_ends(100.0 * drawn[:, 1 + column] / drawn[:, 0]))
            for column, k in enumerate(KS)
        }
        found.append(Slice(name, label, way, len(own), recalls, recalls[f"recall@{KS[-1]}"][2] < overall[way]))
    return found


def part_counts(part: Part, ranks: Ranks, image_of_caption: NDArray[np.int64], ks: Sequence[int]) -> NDArray[np.int64]:
    """What each image brings to a part, (N, 1 + ks): queries, and of these the hits among the first k."""
    images, rank = len(ranks.i2t.rank), getattr(ranks, part.way).rank
    owner = np.arange(images) if part.way == "i2t" else image_of_caption
    hits = [np.bincount(owner, part.queries & (rank <= k), images) for k in ks]
    return np.stack([np.bincount(owner, part.queries, images), *hits], axis=1)


def cut(values: NDArray[np.float64]) -> list[tuple[str, NDArray[np.bool_]]]:
    """Parts of `values` (Q,) by their size, with a label each: every value, if there are few, or about thirds.

    NaN is in none of them.
    """
    known = values[~np.isnan(values)]
    distinct = np.unique(known)
    if len(distinct) <= PARTS + 1:
        return [(f"{value:g}", values == value) for value in distinct] if len(distinct) > 1 else []
    edges = np.unique(np.quantile(known, np.arange(1, PARTS) / PARTS, method="lower"))
    part = np.searchsorted(edges, values)
    made = []
    for number in np.unique(part[~np.isnan(values)]):
        there = (part == number) & ~np.isnan(values)
        low, high = values[there].min(), values[there].max()
        made.append((f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}", there))
    return made


def _images_of(part: Part, image_of_caption: NDArray[np.int64]) -> int:
    """How many images its queries are of."""
    return int(part.queries.sum()) if part.way == "i2t" else len(np.unique(image_of_caption[part.queries]))


def _showing(objects: Sequence[Sequence[str] | None]) -> dict[str, NDArray[np.bool_]]:
    """The images (N,) that each of the most frequent categories is in."""
    sets = [set(there or ()) for there in objects]
    often = Counter(name for there in sets for name in there)
    names = sorted(often, key=lambda name: (-often[name], name))
    told = sum(there is not None for there in objects)
    telling = [name for name in names if FEWEST <= often[name] < told]
    return {name: np.array([name in there for there in sets]) for name in telling[:CATEGORIES]}


def hubs(first: Callable[[int], Sequence[int]], queries: int, items: int) -> Hubs:
    """Of the items that the `queries` have among their first ten, by `first`."""
    found = np.concatenate([np.asarray(first(query)[:FIRST], np.int64) for query in range(queries)])
    return Hubs(np.bincount(found, minlength=items), len(found) / items)


def confusions(
    first: Callable[[int], Sequence[int]], image_of_caption: NDArray[np.int64]
) -> list[tuple[int, int, int]]:
    """Pairs of images of which one's captions find the other first, with how many captions of both do; the most
    frequent pairs come first.
    """
    counts: dict[tuple[int, int], int] = {}
    for caption, own in enumerate(image_of_caption.tolist()):
        found = first(caption)[0]
        if found != own:
            pair = (min(own, found), max(own, found))
            counts[pair] = counts.get(pair, 0) + 1
    return [(*pair, count) for pair, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def _alike(one: str, other: str) -> bool:
    return (int(one, 16) ^ int(other, 16)).bit_count() <= ALIKE_BITS
