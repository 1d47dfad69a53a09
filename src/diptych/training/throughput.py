"""Cost of a training: its speed, its time waiting for data, and its memory."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diptych.training.batches import Batch

GIB = 2**30


class Throughput:
    """Clock and counts of an epoch, or of the rest of one; it starts when it is made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0
        self._images = 0
        self._captions = 0

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Yield `batches`, and count the time until each comes as time spent waiting."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited += time.perf_counter() - asked
            if batch is None:
                return
            self._images += len(batch.image_ids)
            self._captions += len(batch.image_of_caption)
            yield batch

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time that the block takes out of the count."""
        paused = time.perf_counter()
        yield
        self._started += time.perf_counter() - paused

    def figures(self, processes: int, device: torch.device, flops_per_image: float = 0.0) -> dict[str, float]:
        """Return the speed over all `processes`, which have equal shares, and the cost of this one.

        Images and captions a second are those of all processes. The share of time spent waiting for data, the
        floating-point operations a second and the peak memory (GiB, of the GPU or else of the machine) are this one's.
        """
        seconds = time.perf_counter() - self._started
        return {
            "images_per_second": processes * self._images / seconds,
            "captions_per_second": processes * self._captions / seconds,
            "waiting_share": self._waited / seconds,
            "flops_per_second": flops_per_image * self._images / seconds,
            "peak_memory_gib": peak_memory(device) / GIB,
        }


def peak_memory(device: torch.device) -> int:
    """Return the most bytes that torch has allocated on a GPU, or that this process has had resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # macOS counts bytes, Linux KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
