"""The one exception that reaches users as a message, the shortening of its lists, and the signs of a full disk."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from typing import TypeVar

_SHOWN = 5
"""Number of items that a message names."""

_Item = TypeVar("_Item")


class DiptychError(Exception):
    """An error that the user can repair.

    The message says what is wrong, where (file, row or key) and what to do about it. The command line prints it to
    stderr and exits with 1; a traceback appears only with ``--debug``.
    """


def is_disk_full(error: BaseException) -> bool:
    """Return whether the disk is full: libraries wrap that error, or keep only its words (NumPy: counts of bytes)."""
    words = ("No space left on device", "database or disk is full", "Disk quota exceeded")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if any(word in str(error) for word in words) or (isinstance(error, OSError) and " requested and " in str(error)):
        return True
    cause = error.__cause__ or error.__context__
    return cause is not None and is_disk_full(cause)


def some(items: Sequence[str], shown: int = _SHOWN, separator: str = ", ") -> str:
    """Return the first few of the items that a message is about, and the number of further ones."""
    return separator.join(items[:shown]) + _and_more(items, shown)


def some_lines(items: Sequence[_Item], describe: Callable[[_Item], str]) -> list[str]:
    """Return a line for each of the first few items, and one with the number of further items, if there are any.

    Only the items that are shown are described.
    """
    more = _and_more(items, _SHOWN)
    return [*map(describe, items[:_SHOWN]), *([f"…{more}"] if more else [])]


def printable(text: str, substitute: str = "?") -> str:
    """Return `text` with a substitute for each character that is not printable, such as line breaks and escapes."""
    return "".join(character if character.isprintable() else substitute for character in text)


def _and_more(items: Sequence[object], shown: int) -> str:
    return f" and {len(items) - shown} more" if len(items) > shown else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, without a full stop at its end."""
    return str(error).strip().partition("\n")[0].removesuffix(".")
