"""Batches: every image once an epoch, drawn from seed, epoch and step alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from memory_store import MemoryStore
from tiny import make_model, open_prepared, write_prepared

from diptych.data.prepared import PreparedSplit
from diptych.data.stored import Range
from diptych.errors import DiptychError
from diptych.model.towers import Groups
from diptych.training.batches import CALL_TOKENS, STEPS_AHEAD, Batch, BatchPlan, groups_of_like_length, prefetched

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> PreparedSplit:
    folder: Path = tmp_path_factory.mktemp("prepared")
    return open_prepared(write_prepared(folder / "p", train=21)).split("train")


def plan(split: PreparedSplit, **changes: int) -> BatchPlan:
    settings = {"batch_size": 8, "captions_per_image": 2, "seed": 0} | changes
    return BatchPlan(split, **settings)


def same(one: Batch, other: Batch) -> bool:
    fields = ("images", "texts", "mask", "image_of_caption")
    return one.image_ids == other.image_ids and all(torch.equal(getattr(one, f), getattr(other, f)) for f in fields)


def test_every_image_comes_once_an_epoch(split: PreparedSplit) -> None:
    seen = [image for batch in plan(split).epoch(0) for image in batch.image_ids]
    assert sorted(seen) == split.image_ids.tolist()


def test_captions_belong_to_their_images_and_are_not_repeated(split: PreparedSplit) -> None:
    for batch in plan(split).epoch(0):
        for caption, (ids, mask) in enumerate(zip(batch.texts, batch.mask, strict=True)):
            image = split.image_ids.tolist().index(batch.image_ids[batch.image_of_caption[caption]])
            first, last = split.caption_ranges[image : image + 2]
            own = [split.tokens(np.array([index]))[0][0].tolist() for index in range(first, last)]
            assert ids[mask].tolist() in own
        counts = torch.bincount(batch.image_of_caption).tolist()
        available = np.diff(split.caption_ranges)[[split.image_ids.tolist().index(image) for image in batch.image_ids]]
        assert counts == np.minimum(available, 2).tolist()


def test_epochs_differ_and_repeat_exactly(split: PreparedSplit) -> None:
    first, again, second = (list(plan(split).epoch(epoch)) for epoch in (0, 0, 1))
    assert all(same(*pair) for pair in zip(first, again, strict=True))
    assert not same(first[0], second[0])


def test_an_epoch_can_be_entered_at_any_step(split: PreparedSplit) -> None:
    whole = list(plan(split).epoch(3))
    assert all(same(*pair) for pair in zip(whole[1:], plan(split).epoch(3, first_step=1), strict=True))


def test_a_remainder_too_small_for_two_images_each_is_left_out(split: PreparedSplit) -> None:
    assert plan(split, batch_size=10).steps == 2
    assert plan(split, batch_size=8).steps == 3
    assert plan(split, batch_size=8, world_size=3).steps == 2


def test_processes_share_the_batches_of_one_process(split: PreparedSplit) -> None:
    alone = list(plan(split).epoch(0))
    shares = [list(plan(split, rank=rank, world_size=2).epoch(0)) for rank in range(2)]
    for step, batch in enumerate(alone):
        both = [image for share in shares for image in share[step].image_ids]
        assert sorted(both) == sorted(batch.image_ids)
        captions = sum(len(share[step].image_of_caption) for share in shares)
        assert captions == len(batch.image_of_caption)


def test_a_batch_moves_to_a_device_as_a_whole(split: PreparedSplit) -> None:
    batch = next(plan(split).epoch(0))
    assert same(batch.to(torch.device("cpu")), batch)


def test_the_first_images_of_a_batch_are_a_batch_of_their_own(split: PreparedSplit) -> None:
    batch = next(plan(split).epoch(0))
    few = replace(batch, views=batch.images).first_images(3)
    theirs = [row for row, image in enumerate(batch.image_of_caption) if image < 3]
    assert few.image_ids == batch.image_ids[:3]
    assert few.views is not None
    assert torch.equal(few.images, batch.images[:3])
    assert torch.equal(few.views, batch.images[:3])
    for field in ("texts", "mask", "image_of_caption"):
        assert torch.equal(getattr(few, field), getattr(batch, field)[theirs])
    assert few.groups[-1][0] == len(theirs)


def cost(lengths: list[int], groups: Groups) -> int:
    """Tokens with padding, and calls."""
    starts = [0, *(end for end, _ in groups)]
    return sum(
        CALL_TOKENS + (end - start) * max(lengths[start:end]) for start, (end, _) in zip(starts, groups, strict=False)
    )


def cheapest(lengths: list[int]) -> int:
    """The least cost of all cuts."""
    places = range(1, len(lengths))
    every = [cuts for count in range(len(lengths)) for cuts in combinations(places, count)]
    return min(cost(lengths, [(end, 0) for end in (*cuts, len(lengths))]) for cuts in every)


def test_no_other_cut_into_groups_costs_less() -> None:
    generator = np.random.default_rng(0)
    numbers = set()
    for _ in range(60):
        lengths = np.sort(generator.integers(1, 200, generator.integers(1, 9)))
        groups = groups_of_like_length(lengths)
        assert cost(lengths.tolist(), groups) == cheapest(lengths.tolist())
        assert groups[-1][0] == len(lengths)
        assert all(length == lengths[end - 1] for end, length in groups)
        numbers.add(len(groups))
    assert len(numbers) > 2


def test_captions_of_one_length_are_one_group() -> None:
    assert groups_of_like_length(np.full(500, 7)) == ((500, 7),)


def test_the_text_tower_says_of_groups_what_it_says_of_all_at_once(split: PreparedSplit) -> None:
    batch = next(plan(split).epoch(0))
    lengths = batch.mask.sum(dim=1)
    groups = ((4, int(lengths[3])), (9, int(lengths[8])), (len(lengths), int(lengths[-1])))
    assert lengths[3] < lengths[-1]
    model = make_model(200)
    with torch.no_grad():
        apart = model.encode_texts(batch.texts, batch.mask, groups)
        together = model.encode_texts(batch.texts, batch.mask)
    assert torch.allclose(apart.pooled, together.pooled, atol=1e-6)
    assert torch.allclose(apart.tokens[batch.mask], together.tokens[batch.mask], atol=1e-5)


def test_batches_of_an_epoch_come_with_groups_that_hold_their_captions(split: PreparedSplit) -> None:
    for batch in plan(split).epoch(0):
        start = 0
        for end, length in batch.groups:
            assert batch.mask[start:end].sum(dim=1).max() == length
            start = end
        assert start == len(batch.texts)


def test_prefetched_batches_keep_their_order(split: PreparedSplit) -> None:
    plain, ahead = plan(split).epoch(0), prefetched(plan(split).epoch(0), CPU)
    assert all(same(*pair) for pair in zip(plain, ahead, strict=True))


def test_one_batch_is_read_ahead_and_no_more(split: PreparedSplit) -> None:
    batch = next(plan(split).epoch(0))
    read = threading.Semaphore(0)
    asked = 0

    def counting() -> Iterator[Batch]:
        nonlocal asked
        for _ in range(5):
            asked += 1
            read.release()
            yield batch

    ahead = prefetched(counting(), CPU)
    for taken in range(1, 4):
        next(ahead)
        for _ in range(2 if taken == 1 else 1):
            assert read.acquire(timeout=10)
        assert not read.acquire(timeout=0.05)
        assert asked == taken + 1
    ahead.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("batches")]


def test_what_fails_while_reading_ahead_fails_where_the_batch_is_asked_for(split: PreparedSplit) -> None:
    def failing() -> Iterator[Batch]:
        yield next(plan(split).epoch(0))
        raise ValueError("no such image")

    ahead = prefetched(failing(), CPU)
    next(ahead)
    with pytest.raises(ValueError, match="no such image"):
        next(ahead)


def test_pixels_of_a_store_give_the_same_batches_from_any_step_on(
    split: PreparedSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore(tmp_path / "cache")
    store.use(monkeypatch)
    folder = write_prepared(tmp_path / "p", train=21)
    store.take(*folder.glob("images/*.npy"))
    elsewhere = open_prepared(folder).split("train")

    for epoch, first in ((0, 0), (1, 1), (2, 2)):
        expected = list(plan(split, batch_size=4).epoch(epoch, first))
        batches = list(plan(elsewhere, batch_size=4).epoch(epoch, first))
        assert all(same(*pair) for pair in zip(batches, expected, strict=True))


def test_batches_of_a_store_are_requested_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(tmp_path / "cache")
    store.use(monkeypatch)
    folder = write_prepared(tmp_path / "p", train=40)
    store.take(*folder.glob("images/*.npy"))
    requested = threading.Barrier(STEPS_AHEAD, timeout=60)
    read = store.read

    def wait_for_others(ranges: Sequence[Range]) -> list[bytes]:
        if ranges[0].start > 0:
            requested.wait()  # ends only if as many steps are requested at the same time
        return read(ranges)

    monkeypatch.setattr(store, "read", wait_for_others)
    batches = plan(open_prepared(folder).split("train"), batch_size=40 // STEPS_AHEAD).epoch(0)
    assert [batch.step for batch in batches] == list(range(STEPS_AHEAD))


def test_an_error_of_a_store_comes_with_its_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(tmp_path / "cache")
    store.use(monkeypatch)
    folder = write_prepared(tmp_path / "p", train=40)
    store.take(*folder.glob("images/*.npy"))
    store.contents.clear()
    with pytest.raises(DiptychError, match=r"images-00000\.npy is nowhere"):
        list(prefetched(plan(open_prepared(folder).split("train")).epoch(0), CPU))
