"""Advice on towers that are not there: their tokens are words."""

from __future__ import annotations

import pytest
from advised import word_lengths


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch) -> None:
    """No tokenizer is read for a proposal."""
    monkeypatch.setattr("diptych.advice.recipe.caption_lengths", word_lengths)
