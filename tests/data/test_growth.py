"""Growth: which ids are handed out, and which splits are dealt."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest

from diptych.data.growth import _clean, _deal, _Ids


def test_ids_are_the_sources_own_where_free_and_new_ones_where_not() -> None:
    ids = _Ids([{"id": 3}], [3, 8, None])
    assert [ids.take(3), ids.take(8), ids.take(None), ids.take(8)] == [9, 8, 10, 11]


@pytest.mark.parametrize("hostile", [-1, 2**62, 2**80, 1.5, "7", None])
def test_an_id_that_cannot_name_a_file_is_replaced(hostile: object) -> None:
    assert _Ids([{"id": 1}], [hostile]).take(hostile) == 2


def test_splits_are_dealt_in_the_parts_asked_for() -> None:
    dealt = Counter(_deal(hashlib.sha256(str(number).encode()).hexdigest(), (80, 10, 10)) for number in range(5000))
    assert [dealt[split] / 5000 for split in ("train", "val", "test")] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_the_same_content_is_always_dealt_alike() -> None:
    sha256 = hashlib.sha256(b"photo").hexdigest()
    assert len({_deal(sha256, (80, 10, 10)) for _ in range(3)}) == 1


def test_half_characters_are_mended() -> None:
    assert _clean("\ud83d\ude42 \ud83d") == "🙂 \ufffd"
    assert _clean(None) is None
