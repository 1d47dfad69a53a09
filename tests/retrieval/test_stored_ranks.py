"""Ranks on disk are read as they were written, and a file that does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from diptych.errors import DiptychError
from diptych.retrieval.ranking import ranks_from_embeddings
from diptych.retrieval.stored_ranks import load_ranks, save_ranks


def test_ranks_are_read_as_they_were_written(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    owner = np.repeat(np.arange(12), 3)
    ranks = {"ridge": ranks_from_embeddings(random.normal(size=(12, 5)), random.normal(size=(36, 5)), owner)}
    save_ranks(tmp_path / "a.npz", ranks)
    save_ranks(tmp_path / "b.npz", ranks)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    read = load_ranks(tmp_path / "a.npz", 12, 36)
    assert list(read) == ["ridge"]
    for both, expected in zip(read["ridge"], ranks["ridge"], strict=True):
        assert all(np.array_equal(*values) for values in zip(both, expected, strict=True))
    with pytest.raises(DiptychError, match="holds ridge of another test split"):
        load_ranks(tmp_path / "a.npz", 12, 35)


def test_no_methods_are_read_as_none(tmp_path: Path) -> None:
    save_ranks(tmp_path / "none.npz", {})
    assert load_ranks(tmp_path / "none.npz", 1, 1) == {}


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut off", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_missing_or_damaged_says_what_to_run(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "baselines.npz").write_bytes(content)
    with pytest.raises(DiptychError, match=r"baselines.npz is missing or damaged .*dvc repro baselines"):
        load_ranks(tmp_path / "baselines.npz", 1, 1)
