"""Which packages are installed, beside those that a lock names."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

LOCK = "requirements.lock"


def other_than_locked(lock: Path) -> list[str]:
    """Each installed package whose version is none of those that the lock names for it, with both."""
    # Of some packages there are several, for other versions of Python.
    locked: dict[str, set[str]] = {}
    for name, number in re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE):
        locked.setdefault(name, set()).add(number)
    others = []
    for name, numbers in locked.items():
        try:
            there = version(name)
        except PackageNotFoundError:
            continue  # of another platform, or of development alone
        # Torch tells its build behind a plus sign.
        if there.partition("+")[0] not in {number.partition("+")[0] for number in numbers}:
            others.append(f"{name} {there}, not {' or '.join(sorted(numbers))}")
    return others
