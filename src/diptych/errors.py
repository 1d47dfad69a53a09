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


def some(items: Sequence[str], shown: int = _SHOWN, separator: str = ", ") -> str:
    """Return the first few of the items that a message is about, and the number of further ones."""
    more = f" and {len(items) - shown} more" if len(items) > shown else ""
    return separator.join(items[:shown]) + more


def printable(text: str, substitute: str = "?") -> str:
    """Return `text` in one line, with a substitute for each character that is none or that a terminal would obey."""
    return "".join(character if character.isprintable() else substitute for character in text)
