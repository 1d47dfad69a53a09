"""Tables of many rows that are never all in memory as Python objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import pandas as pd

_ROWS = 10_000
"""Number of rows that are packed at once. A row of Python objects takes half a kilobyte, and a tenth in columns."""


def packed(rows: Iterable[tuple[Any, ...]], types: Mapping[str, str]) -> pd.DataFrame:
    """Return a table of `rows`, whose columns have the names and pandas' types of `types`."""
    rows, columns = iter(rows), list(types)
    parts: list[pd.DataFrame] = []
    while not parts or len(parts[-1]) == _ROWS:
        # Columns of objects keep integers exact until they have the type that is asked for.
        part = pd.DataFrame(list(islice(rows, _ROWS)), columns=columns, dtype=object)
        parts.append(part.astype(dict(types)))
    return pd.concat(parts, ignore_index=True)
