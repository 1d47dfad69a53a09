"""One progress bar for all long work, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from diptych.processes import is_first_process


def progress(iterable: Iterable[Any] | None, description: str, *, unit: str, **options: Any) -> tqdm[Any]:
    """A tqdm bar that redraws itself on a terminal, and where output goes to a log writes a line every ten seconds.

    Of several processes that train together only the first shows it.
    """
    interval = 0.1 if sys.stderr.isatty() else 10.0
    options = {"disable": not is_first_process()} | options
    return tqdm(iterable, desc=description, unit=f" {unit}", mininterval=interval, file=sys.stderr, **options)
