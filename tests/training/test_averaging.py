"""Means of gradients over processes: the values, and that they leave while others are still computed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from diptych.training import averaging
from diptych.training.averaging import GradientAverage

Pair = tuple[Path, Callable[[str], tuple[Any, Any]]]


def test_one_process_alone_averages_nothing() -> None:
    weight = nn.Parameter(torch.ones(2))
    average = GradientAverage([weight])
    with average.last_pass():
        weight.sum().backward()
    average.finish()
    assert torch.equal(weight.grad, torch.ones(2))  # type: ignore[arg-type]


def test_two_processes_average_every_gradient_and_count_a_missing_one_as_zero(two_processes: Pair) -> None:
    """The buckets hold one weight, or two: a bucket is full behind its second one."""
    for results in two_processes[1]("averages"):
        assert [None if grad is None else grad.unique().tolist() for grad in results] == [
            *([0.5], [5.5], [20.5], [30.5], [40.5]),
            None,
        ]


def test_gradients_leave_in_the_last_pass_and_every_process_has_the_same_means(two_processes: Pair) -> None:
    first, second = two_processes[1]("overlapping")
    assert [in_time for in_time, _ in first] == [3, 2, 3]
    assert [in_time for in_time, _ in second] == [3, 2, 0]
    # Each weight w has 2 w from the pass before, and 1 or 2 from the last one: the mean is 2 w + 1.5.
    expected = [[[3.5], [5.5], [7.5]], [None, [5.5], [7.5]], [[3.5], [5.5], [3.5]]]
    for steps in (first, second):
        assert [[None if grad is None else grad.unique().tolist() for grad in grads] for _, grads in steps] == expected


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """A second process whose gradients are zero; what is sent to it."""
    sent: list[torch.Tensor] = []

    class Done:
        def wait(self) -> None: ...

    def all_reduce(values: torch.Tensor, async_op: bool) -> Done:
        sent.append(values.clone())
        return Done()

    monkeypatch.setattr(averaging, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    return sent


def test_a_step_that_failed_leaves_nothing_to_the_next_one(other: list[torch.Tensor]) -> None:
    weight = nn.Parameter(torch.ones(2))
    average = GradientAverage([weight])
    with pytest.raises(ArithmeticError), average.last_pass():
        (100 * weight.sum()).backward()
        raise ArithmeticError
    weight.grad = None
    with average.last_pass():
        weight.sum().backward()
    average.finish()
    assert torch.equal(weight.grad, torch.full((2,), 0.5))  # type: ignore[arg-type]


def test_a_pass_after_the_last_one_is_an_error(other: list[torch.Tensor]) -> None:
    weight = nn.Parameter(torch.ones(2))
    average = GradientAverage([weight])
    with average.last_pass():
        weight.sum().backward()
    with pytest.raises(KeyError), average.last_pass():
        weight.sum().backward()


def test_weights_and_averages_are_freed(other: list[torch.Tensor]) -> None:
    weight = nn.Parameter(torch.ones(2))
    average = GradientAverage([weight])
    with average.last_pass():
        weight.sum().backward()
    average.finish()
    alive = weakref.ref(average)
    del average
    gc.collect()
    assert alive() is None
    weight.sum().backward()
    assert len(other) == 1
