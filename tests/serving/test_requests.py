"""A query's text is cleaned, and refused where nothing is left."""

from __future__ import annotations

import pytest

from diptych.serving.requests import LONGEST_TEXT, RequestError, clean_text


@pytest.mark.parametrize(
    ("text", "clean"), [("  two dogs\n", "two dogs"), ("a\x00b\x1bc", "a b c"), ("\ud800dog", "dog"), ("é😀", "é😀")]
)
def test_control_characters_and_halves_of_characters_become_blanks(text: str, clean: str) -> None:
    assert clean_text(text) == clean


@pytest.mark.parametrize(("text", "message"), [("\t", "empty"), ("a" * (LONGEST_TEXT + 1), "1,001 characters")])
def test_what_cannot_be_searched_for_is_refused(text: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        clean_text(text)
