"""Comparison of the installed packages with a lock, and of the running code with the project's."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import diptych

LOCK = "requirements.lock"


def foreign_code(root: Path) -> Path | None:
    """Return the folder of the package that runs, if it is other code than that of the project; None if it is the same.

    The virtual environment of a project that was copied runs the code of the original.
    """
    running, local = Path(diptych.__file__).parent, root / "src" / "diptych"
    if not local.is_dir() or running.samefile(local) or _sources(running) == _sources(local):
        return None
    return running


def _sources(package: Path) -> dict[Path, bytes]:
    # An editor's lock on a file may be a link to nothing (Emacs: .#config.py).
    return {path.relative_to(package): path.read_bytes() for path in package.rglob("*.py") if path.is_file()}


def other_than_locked(lock: Path) -> list[str]:
    """Return the installed packages whose version is none of those in the lock, each with both versions."""
    # Some packages have several versions, for different versions of Python.
    locked: dict[str, set[str]] = {}
    for name, number in re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text(encoding="utf-8"), re.MULTILINE):
        locked.setdefault(name, set()).add(number)
    others = []
    for name, numbers in locked.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            continue  # of another platform, or of development alone
        # Torch adds its build after a plus sign.
        if installed.partition("+")[0] not in {number.partition("+")[0] for number in numbers}:
            others.append(f"{name} {installed}, not {' or '.join(sorted(numbers))}")
    return others
