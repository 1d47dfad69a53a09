"""One progress bar for all long work, on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def has_rank() -> bool:
    """Return whether torchrun or accelerate has started this process as one of several.

    Clusters set RANK and WORLD_SIZE for a node of theirs; LOCAL_RANK comes from a launcher alone.
    """
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def is_first_process() -> bool:
    """Return whether this process is alone, or the first of those that train together."""
    return not has_rank() or int(os.environ["RANK"]) == 0


def progress(iterable: Iterable[Any] | None, description: str, *, unit: str, **options: Any) -> tqdm[Any]:
    """Return a tqdm bar, which redraws itself on a terminal and writes a line every ten seconds elsewhere.

    Of several processes that train together only the first shows it.
    """
    interval = 0.1 if sys.stderr.isatty() else 10.0
    options = {"disable": not is_first_process()} | options
    return tqdm(iterable, desc=description, unit=f" {unit}", mininterval=interval, file=sys.stderr, **options)
