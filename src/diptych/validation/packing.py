"""Tables of many rows that are never all in memory as Python objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import pandas as pd
import pyarrow as pa

_ROWS = 10_000
"""Number of rows that are packed at once. A row of Python objects takes half a kilobyte, and a tenth in columns."""


def packed(rows: Iterable[tuple[Any, ...]], types: Mapping[str, str]) -> pd.DataFrame:
    """Return a table of `rows`, whose columns have the names and pandas' types of `types`."""
    rows, columns = iter(rows), list(types)
    parts: list[pa.Table] = []
    while not parts or len(parts[-1]) == _ROWS:
        # Columns of objects keep integers exact until they have the type that is asked for.
        part = pd.DataFrame(list(islice(rows, _ROWS)), columns=columns, dtype=object).astype(dict(types))
        parts.append(pa.Table.from_pandas(part, preserve_index=False))
    # A column of texts in parts would be joined again by each selection of rows.
    table = pa.concat_tables(parts).combine_chunks()
    parts.clear()
    release_unused()
    return table.to_pandas()


def release_unused() -> None:
    """Give memory that was freed back to the system, where the C library keeps it."""
    pa.default_memory_pool().release_unused()
