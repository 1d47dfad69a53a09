"""Lists and texts in messages."""

from __future__ import annotations

import pytest

from diptych.errors import printable, some, some_lines


def test_a_short_list_is_shown_in_full() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some([]) == ""


def test_of_a_long_list_the_first_items_are_shown_and_the_others_counted() -> None:
    assert some(list("abcdefg")) == "a, b, c, d, e and 2 more"
    assert some(list("abcd"), 1, "; ") == "a and 3 more"


def test_lines_are_made_for_the_items_that_are_shown_and_for_no_others() -> None:
    described: list[int] = []

    def describe(item: int) -> str:
        described.append(item)
        return f"row {item}"

    assert some_lines(range(7), describe) == ["row 0", "row 1", "row 2", "row 3", "row 4", "… and 2 more"]
    assert described == [0, 1, 2, 3, 4]
    assert some_lines([8], describe) == ["row 8"]


@pytest.mark.parametrize("character", ["\n", "\x1b", "\u202e"])
def test_characters_that_a_terminal_would_obey_are_replaced(character: str) -> None:
    assert printable(f"größer {character}🦊") == "größer ?🦊"
