"""Batches: every image once an epoch, drawn from seed, epoch and step alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import open_prepared, write_prepared

from diptych.data.prepared import PreparedSplit
from diptych.training.batches import Batch, BatchPlan


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
