"""Throughput: what it counts, and that waiting is told from working."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil  # type: ignore[import-untyped]
import pytest
import torch

from diptych.training.batches import Batch
from diptych.training.throughput import Throughput, peak_memory

CPU = torch.device("cpu")


def batch(images: int, captions: int) -> Batch:
    pixels, (texts, mask, owners) = torch.zeros(images), torch.zeros(3, captions)
    return Batch(0, 0, list(range(images)), pixels, texts, mask, groups=(), image_of_caption=owners)


def slowly(batches: list[Batch]) -> Iterator[Batch]:
    for one in batches:
        time.sleep(0.2)
        yield one


def test_batches_pass_in_order_and_are_counted() -> None:
    batches = [batch(4, 8), batch(2, 3)]
    throughput = Throughput()
    assert list(throughput.watch(iter(batches))) == batches
    figures = throughput.figures(processes=2, device=CPU)
    assert figures["captions_per_second"] / figures["images_per_second"] == pytest.approx(11 / 6)


def test_the_share_of_waiting_grows_with_slow_data_and_falls_with_slow_steps() -> None:
    waiting, working = Throughput(), Throughput()
    list(waiting.watch(slowly([batch(1, 1)] * 2)))
    assert waiting.figures(1, CPU)["waiting_share"] > 0.8
    for _ in working.watch(iter([batch(1, 1)] * 2)):
        time.sleep(0.2)
    assert working.figures(1, CPU)["waiting_share"] < 0.2


def test_peak_memory_is_in_bytes_and_about_no_less_than_what_is_held_now() -> None:
    held = psutil.Process().memory_info().rss
    # The kernel counts both in batches.
    assert 0.9 * held <= peak_memory(CPU) < psutil.virtual_memory().total
