"""Requests are checked before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from diptych.serving.schemas import SearchRequest


def test_a_request_needs_nothing_but_a_text() -> None:
    request = SearchRequest(text="a dog")
    assert (request.k, request.offset, request.filters, request.rerank, request.min_probability) == (
        10,
        0,
        [],
        True,
        0.5,
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text": "a" * 1001}, "at most 1000 characters"),
        ({"k": 0}, "greater than or equal to 1"),
        ({"k": 1001}, "less than or equal to 1000"),
        ({"offset": -1}, "greater than or equal to 0"),
        ({"min_probability": 1.5}, "less than or equal to 1"),
        ({"top": 3}, "Extra inputs are not permitted"),
        ({"filters": [{"attribute": "year", "operator": "~", "value": 1}]}, "Input should be '='"),
        ({"filters": [{"attribute": "year", "value": [1]}]}, "valid"),
        ({"filters": [{"attribute": "year", "value": 1}] * 21}, "at most 20 items"),
    ],
)
def test_what_is_out_of_range_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SearchRequest.model_validate({"text": "a", **changes})
