"""Choice of the device, its precision, CPU threads and memory settings."""

from __future__ import annotations

import ctypes
import os
from typing import Literal, cast

import torch

from diptych.data.cores import worker_count
from diptych.errors import DiptychError
from diptych.model.kernels import choose_attention

Precision = Literal["no", "bf16", "fp16"]

BLOCK_SCORES = 4_000_000
"""Number of scores of queries and items that are held in memory at once."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""Parameter numbers of `mallopt`, from malloc.h."""


def prepare(name: str, threads: int | None) -> torch.device:
    """Set the CPU threads and memory use of torch, and return the device that params.yaml names.

    Raises:
        DiptychError: this machine has no such device.
    """
    keep_freed_memory()
    set_threads(threads)
    return choose_device(name)


def choose_device(name: str) -> torch.device:
    """Return the device that params.yaml names and choose its attention kernel; ``auto`` prefers a GPU.

    Raises:
        DiptychError: the device asked for is not on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, is_available in available.items() if is_available)
    if not available.get(name):
        raise DiptychError(f"params.yaml: device is {name}, which this machine does not have; set it to auto or cpu.")
    device = torch.device(name)
    choose_attention(device)
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision that params.yaml names; ``auto`` is bf16 where `device` has matrix units for it.

    Among CPUs, those with AMX have such units. With AVX-512's bf16 instructions alone, bf16 took 1.5 times as long as
    float32.
    """
    if name != "auto":
        return cast(Precision, name)
    native = {"cuda": torch.cuda.is_bf16_supported, "cpu": lambda: torch.cpu.get_capabilities().get("amx_tile", False)}
    return "bf16" if native.get(device.type, bool)() else "no"


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for later tensors; with another C library, do nothing.

    By default it returns large blocks to the kernel, which clears each page again: a third of a step's time on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 2**30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def set_threads(threads: int | None) -> None:
    """Set the number of CPU threads of torch.

    The default is one thread per core, divided among the processes that train together on this machine. The order of
    summation depends on the number, and so do the last bits of a result.
    """
    torch.set_num_threads(threads or max(1, worker_count(None) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
