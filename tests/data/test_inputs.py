"""What the towers are given: from blocks, as if they were one table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import open_prepared, write_prepared

from diptych.data.inputs import Inputs, StoredImages, StoredTexts
from diptych.data.prepared import PreparedSplit

BLOCK_OF = np.array([1, 0, 0, 2, 1, 0])
"""Of six items."""


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> PreparedSplit:
    return open_prepared(write_prepared(tmp_path_factory.mktemp("prepared") / "p", train=6)).split("train")


def test_images_are_found_in_their_blocks() -> None:
    table = np.random.default_rng(0).random((6, 3, 2)).astype(np.float16)
    images = StoredImages([table[block == BLOCK_OF] for block in range(3)], BLOCK_OF)
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 3, 0], [2]):
        assert torch.equal(images(np.array(order)), torch.from_numpy(table[order]))


def test_captions_are_found_in_their_blocks_and_are_zero_beyond_their_ends() -> None:
    generator = np.random.default_rng(0)
    lengths = np.array([2, 5, 1, 3, 4, 2])
    table = [generator.random((length, 2, 3)).astype(np.float16) for length in lengths]
    blocks = [np.concatenate([table[i] for i in np.flatnonzero(block == BLOCK_OF)]) for block in range(3)]
    texts = StoredTexts(blocks, BLOCK_OF, lengths)
    for order in ([0, 1, 2, 3, 4, 5], [5, 2, 2, 0], [2]):
        features, mask = texts(np.array(order))
        longest = max(lengths[order])
        padded = [np.pad(table[i], ((0, longest - lengths[i]), (0, 0), (0, 0))) for i in order]
        assert torch.equal(features, torch.from_numpy(np.stack(padded)))
        assert mask.tolist() == [[step < lengths[i] for step in range(longest)] for i in order]


def test_without_features_there_are_pixels_and_token_ids(split: PreparedSplit) -> None:
    inputs, order = Inputs(split), np.array([3, 0, 3])
    assert torch.equal(inputs.images(order), torch.from_numpy(split.pixels(order)))
    assert all(map(torch.equal, inputs.texts(order), map(torch.from_numpy, split.tokens(order))))


def test_features_of_one_tower_leave_the_other_its_own_input(split: PreparedSplit) -> None:
    images = StoredImages([np.ones((6, 1, 1), np.float16)], np.zeros(6, np.int64))
    inputs = Inputs(split, images=images)
    assert inputs.images(np.arange(2)).dtype == torch.float16
    assert inputs.texts(np.arange(2))[0].dtype == torch.int64
