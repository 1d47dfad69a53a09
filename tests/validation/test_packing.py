"""Tables that are packed in parts: the same as those that are made at once."""

from __future__ import annotations

import pandas as pd
import pytest

from diptych.validation import packing
from diptych.validation.packing import packed

TYPES = {"id": "int64", "text": "str", "size": "Int64"}


@pytest.mark.parametrize("count", [0, 1, 3, 4, 6, 7])
def test_parts_make_the_table_that_is_made_at_once(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_ROWS", 3)
    rows = [(2**62 + row, None if row % 2 else f"text {row}", None if row > 3 else 2**60 + row) for row in range(count)]
    expected = pd.DataFrame(rows, columns=list(TYPES), dtype=object).astype(TYPES)
    pd.testing.assert_frame_equal(packed(iter(rows), TYPES), expected)
