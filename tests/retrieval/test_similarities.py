"""The distribution of cosines, against a loop over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from diptych.retrieval import similarities as module
from diptych.retrieval.similarities import BINS, Similarities, similarities


@pytest.mark.parametrize("block", [1, 7, 10_000])
def test_every_pair_is_counted_in_its_bin(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_SCORES", block)
    random = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(5, 6, generator=random), dim=1)
    own = np.array([0, 0, 1, 2, 3, 3, 4])
    text = normalize(image[torch.from_numpy(own)] + 0.3 * torch.randn(7, 6, generator=random), dim=1)
    found = similarities(image, text, own)
    expected = np.zeros((2, BINS), np.int64)
    for caption in range(7):
        for one in range(5):
            cosine = float(text[caption] @ image[one])
            expected[int(own[caption] != one), min(int((cosine + 1) / 2 * BINS), BINS - 1)] += 1
    assert found.matching.tolist() == expected[0].tolist()
    assert found.other.tolist() == expected[1].tolist()


def test_cosines_of_one_are_within_and_shares_are_percent() -> None:
    one = torch.full((3, 4), 0.5)
    found = similarities(one * 1.0000001, one, np.arange(3))
    assert (found.matching[-1], found.other[-1]) == (3, 6)
    assert [share.sum() for share in found.shares()] == [100.0, 100.0]
    assert len(Similarities.edges()) == BINS + 1


def test_without_other_pairs_their_share_is_zero() -> None:
    found = similarities(torch.ones(1, 1), torch.ones(2, 1), np.zeros(2, np.int64))
    assert found.shares()[1].sum() == 0.0
