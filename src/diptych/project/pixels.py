"""Pixels that stay in the DVC remote: for a machine that works with only the tables on its disk.

DIPTYCH_PIXELS=remote says so. Where pixels lie changes nothing of what is computed, so no file of the project says it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from diptych.errors import DiptychError
from diptych.project.workspace import Workspace

VARIABLE = "DIPTYCH_PIXELS"
PIXELS = ("data", "artifacts/prepared/images")
"""Paths of the folders with pixels, as DVC names them."""
READERS = ("validate", "preprocess")
"""Stages that depend on the images themselves; the others depend on tables that name each image by its hash."""
_ABSENT = ("deleted", "not in cache")


def stay_remote() -> bool:
    """Return whether pixels that are not on this disk stay where they are.

    Raises:
        DiptychError: the variable has an unknown value.
    """
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "remote"):
        raise DiptychError(f"{VARIABLE} is {value!r}: set it to `remote`, or unset it to have the pixels fetched.")
    return value == "remote"


def lacks_images(workspace: Workspace) -> bool:
    """Return whether the images of the dataset are to stay in the remote, and are not on this disk."""
    return stay_remote() and not workspace.data.exists()


def without_pixels(changes: Mapping[str, Any], is_here: Mapping[str, bool]) -> dict[str, Any]:
    """Return DVC's status without the absence of pixels; `is_here` has each of `PIXELS`: whether the disk has it."""
    reduced = {}
    for stage, entries in changes.items():
        if rest := [entry for entry in (_reduced(entry, is_here) for entry in entries) if entry]:
            reduced[stage] = rest
    return reduced


def _reduced(entry: Any, is_here: Mapping[str, bool]) -> Any:
    if not isinstance(entry, dict):
        return entry
    kept = {
        kind: {path: state for path, state in states.items() if state not in _ABSENT or is_here.get(path, True)}
        for kind, states in entry.items()
    }
    return {kind: states for kind, states in kept.items() if states}
