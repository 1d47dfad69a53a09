"""Which device to compute on."""

from __future__ import annotations

import ctypes
import os
from typing import Literal, cast

import torch

from diptych.data.workers import worker_count
from diptych.errors import DiptychError
from diptych.model.kernels import choose_attention

Precision = Literal["no", "bf16", "fp16"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
"""As malloc.h numbers them."""


def prepare(name: str, threads: int | None) -> torch.device:
    """Set the CPU threads and memory use of torch, and return the device that params.yaml names.

    Raises:
        DiptychError: this machine has no such device.
    """
    keep_freed_memory()
    set_threads(threads)
    return choose_device(name)


def choose_device(name: str) -> torch.device:
    """The device that params.yaml names, with its attention chosen; ``auto`` takes a GPU where there is one.

    Raises:
        DiptychError: the device asked for is not on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in available.items() if there)
    if not available[name]:
        raise DiptychError(f"params.yaml: device is {name}, which this machine does not have; set it to auto or cpu.")
    device = torch.device(name)
    choose_attention(device)
    return device


def choose_precision(name: str, device: torch.device) -> Precision:
    """The precision that params.yaml names; ``auto`` takes bf16 where `device` has units for its matrix products.

    Of CPUs these are those with AMX: AVX-512's bf16 instructions alone took half as long again as float32.
    """
    if name != "auto":
        return cast(Precision, name)
    native = {"cuda": torch.cuda.is_bf16_supported, "cpu": torch.cpu._is_amx_tile_supported}
    return "bf16" if native.get(device.type, bool)() else "no"


def keep_freed_memory() -> None:
    """Has the C library (glibc; elsewhere nothing happens) keep the memory that tensors give back, for those to come.

    It would return large blocks to the kernel, which then clears each page again: a third of a step's time on a CPU.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 2**30)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def set_threads(threads: int | None) -> int:
    """Has torch compute with `threads` CPU threads and returns their number; by default one a core, or this process's
    share of them where several train together on a machine.

    The order in which a sum is taken depends on it, and so do the last bits of a result.
    """
    threads = threads or max(1, worker_count(None) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads
