"""The one exception that reaches users as a message instead of a traceback."""

from __future__ import annotations

from collections.abc import Sequence

_SHOWN = 5
"""Offenders that a message names."""


class DiptychError(Exception):
    """Something the user can mend.

    The message says what is wrong, where (file, row or key) and what to do about it. The command line prints it to
    stderr and exits with 1; a traceback appears only with ``--debug``.
    """


def some(items: Sequence[str]) -> str:
    """Return the first few of the items that a message is about, and how many more there are."""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more
