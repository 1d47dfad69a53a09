"""The task of a system as the arguments of its process, and the result that it prints."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch

Frozen = Literal["none", "image", "both"]
Precision = Literal["fp32", "bf16"]

Result = dict[str, Any]
"""Result of a task.

A measurement of speed has "pairs_per_second" and "losses", one for each step. A training has "epochs", each with the
"seconds" of training until its end, and "rsum" on val. Both have "settings", a description of the measurement.
"""


@dataclass(frozen=True)
class Task:
    """One measurement of one system, whose process runs in the workspace.

    Without `epochs` it measures the speed of `steps` after `warmup_steps`; with them it trains and evaluates.
    """

    frozen: Frozen = "none"
    """Towers whose weights stay as they are."""
    text_length: Literal["recommended", "longest"] = "recommended"
    """Tokens that captions are padded to: the peer's own, or the longest caption of the batch."""
    precision: Precision = "fp32"
    batch_size: int = 64
    """Pairs in a step. For diptych: images in a step, where 0 means as in its params.yaml."""
    workers: int = 2
    """Processes that load the peers' data."""
    threads: int = 0
    """CPU threads; 0: one for each core."""
    device: Literal["cpu", "cuda"] = "cpu"
    warmup_steps: int = 3
    steps: int = 10
    epochs: int = 0
    pairs: int = 0
    """Pairs that the peers train on, drawn from all; 0: all of them."""
    budget: float = 0.0
    """Seconds of training after which no further epoch begins; 0: no limit."""
    learning_rate: float = 0.0
    """0: the recommended."""
    seed: int = 0
    params: str = "params.yaml"
    """Path of diptych's parameters; the peers read the splits from it."""
    scratch: str = ""
    """A folder of files that diptych uses in several runs."""

    def arguments(self) -> list[str]:
        """Return the task in the form that `parse_task` reads."""
        return [f"--{field.name.replace('_', '-')}={getattr(self, field.name)}" for field in fields(self)]

    @property
    def all_steps(self) -> int:
        """Number of steps, with those that warm up."""
        return self.warmup_steps + self.steps


def parse_task(description: str | None) -> Task:
    """Parse the task of this process's command line."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for field in fields(Task):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), default=field.default)
    return Task(**vars(parser.parse_args()))


def answer(description: str | None, perform: Callable[[Task], Result]) -> None:
    """Perform the task of the command line, and print its result, the only output to stdout."""
    task = parse_task(description)
    torch.set_num_threads(task.threads or len(os.sched_getaffinity(0)))
    torch.manual_seed(task.seed)
    np.random.seed(task.seed)  # the peers draw from the global generator
    with contextlib.redirect_stdout(sys.stderr):
        result = perform(task)
    print(json.dumps(result))
