"""Launching of several processes that train together, and the environment variables of their ranks."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from diptych.errors import DiptychError
from diptych.progress import has_rank

LAUNCHED = "DIPTYCH_LAUNCHED"
"""Environment variable of processes that `launch` has started; without it, a launcher that passes on no ranks would
start itself forever."""

RAY = "ray"
"""Command of train.launch that stands for Ray Train, which starts no program."""

_RANK = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)"
    r"|(PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_(LOCAL_)?(RANK|SIZE)|MPI_LOCAL(RANKID|NRANKS)"
)
"""Environment variables that a launcher, MPI or a cluster gives to each of several processes."""


def without_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` without the variables that make a process one of several."""
    return {name: value for name, value in environment.items() if not _RANK.fullmatch(name)}


def forget_foreign_rank() -> None:
    """Remove the rank of another job from the environment: accelerate would wait for the processes of that job."""
    if not has_rank():
        for name in filter(_RANK.fullmatch, list(os.environ)):
            del os.environ[name]


def process_count() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if has_rank() else 1


def launch(command: Sequence[str]) -> None:
    """Replace this process by `command`, which starts this program in several processes.

    `command` is torchrun or accelerate launch with its options. In the processes that it starts, and where another
    launcher has started several, this does nothing.

    Raises:
        DiptychError: the program is not installed, or it starts this one again without a rank.
    """
    if has_rank():
        return
    if LAUNCHED in os.environ:
        raise DiptychError(
            f"params.yaml: train.launch: `{' '.join(command)}` starts one process alone. torchrun wants "
            "--nproc-per-node, accelerate launch wants --multi_gpu beside --num_processes; or leave train.launch empty."
        )
    os.environ[LAUNCHED] = "1"
    program = shutil.which(command[0], path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise DiptychError(f"params.yaml: train.launch names {command[0]}, which is not installed or not on PATH.")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, [program, *command[1:], "-m", "diptych", *sys.argv[1:]])
