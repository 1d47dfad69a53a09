"""Filters on the attributes of a collection: typed comparisons, which hold or not for each image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from diptych.errors import DiptychError, printable, some
from diptych.serving.sources import Value
from diptych.serving.table_source import ATTRIBUTE

Operator = Literal["=", "!=", "<", "<=", ">", ">="]
_FILTER = re.compile(rf"\s*({ATTRIBUTE.pattern})\s*(!=|<=|>=|==|=|<|>)(.*)", re.DOTALL)
_FUNCTIONS = {
    "=": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}
_TRUTH = {"true": True, "false": False}


class Filter(NamedTuple):
    """Comparison of an attribute with a value. An image without a value for the attribute fails it."""

    attribute: str
    operator: Operator
    value: Value


class FilterError(DiptychError):
    """A filter that does not fit the attributes of the collection."""


def parse_filter(text: str) -> Filter:
    """Return the filter of a text such as `year>=2010` or `folder=cats`; everything after the operator is the value.

    Raises:
        FilterError: the text is no such comparison.
    """
    match = _FILTER.fullmatch(text)
    if match is None:
        raise FilterError(f"The filter {printable(text[:80])!r} is no comparison such as folder=cats or year>=2010.")
    name, operator, value = match.groups()
    return Filter(name, cast(Operator, "=" if operator == "==" else operator), value.strip())


def matching(filters: Sequence[Filter], attributes: pa.Table) -> NDArray[np.bool_] | None:
    """Return which rows of `attributes` pass all filters, bool (N,); None without filters.

    Raises:
        FilterError: there is no such attribute, or its values cannot be compared with the filter's.
    """
    if not filters:
        return None
    mask = np.ones(attributes.num_rows, bool)
    for one in filters:
        if one.attribute not in attributes.column_names:
            names = some(attributes.column_names) if attributes.column_names else "none"
            raise FilterError(f"The collection has no attribute {one.attribute!r}; it has {names}.")
        column = attributes[one.attribute]
        value = _typed(one, column.type)
        if isinstance(value, float) and pa.types.is_integer(column.type):
            column = column.cast(pa.float64(), safe=False)
        elif isinstance(value, int) and pa.types.is_floating(column.type):
            value = float(value)
        mask &= pc.fill_null(_FUNCTIONS[one.operator](column, value), False).to_numpy()
    return mask


def _number(text: str) -> int | float:
    """Return an integer of 64 bits where the text is one, so that no digit is lost, else a float."""
    try:
        number = int(text)
    except ValueError:
        return float(text)
    return number if -(2**63) <= number < 2**63 else float(number) if abs(number) < 10**300 else float("inf")


def _typed(one: Filter, kind: pa.DataType) -> Any:
    """Return the filter's value as the attribute's type has it."""
    value, text = one.value, str(one.value).strip().lower()
    try:
        if pa.types.is_boolean(kind):
            return value if isinstance(value, bool) else _TRUTH[text]
        if pa.types.is_integer(kind) or pa.types.is_floating(kind):
            if isinstance(value, bool):
                raise ValueError
            return _number(text)
    except (KeyError, ValueError):
        kinds = "true or false" if pa.types.is_boolean(kind) else "a number"
        raise FilterError(
            f"The attribute {one.attribute} is {kinds}, and not {printable(str(value)[:80])!r}."
        ) from None
    return str(value).encode("utf-8", "replace").decode()
