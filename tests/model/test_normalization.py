"""Batch normalization over two processes with two and three images against torch's and timm's over all five."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import NORMS, normalized
from tiny import make_model

from diptych.model.normalization import GlobalBatchNorm, synchronize_batch_norms

Pair = tuple[Path, Callable[[str], tuple[Any, Any]]]

ROWS = 6
"""So many of the tensors have a row an image; of those behind, the first two are gradients of weights."""


@pytest.fixture(params=NORMS)
def norms(request: pytest.FixtureRequest, two_processes: Pair) -> tuple[Any, Any, Any]:
    """What one process finds over all images, and two over their shares."""
    first, second = two_processes[1]("batch_norms")
    place = list(NORMS).index(request.param)
    return normalized(NORMS[request.param](), slice(None)), first[place], second[place]


def test_outputs_and_gradients_of_the_input_are_those_over_all_images(norms: tuple[Any, Any, Any]) -> None:
    for alone, first, second in list(zip(*norms, strict=True))[:ROWS]:
        both = torch.cat([first, second])
        assert both.dtype == alone.dtype
        tolerance = 2e-5 if both.dtype == torch.float32 else 2e-2
        assert torch.allclose(both, alone, rtol=tolerance, atol=tolerance)


def test_gradients_of_the_weights_add_up_to_those_over_all_images(norms: tuple[Any, Any, Any]) -> None:
    for alone, first, second in list(zip(*norms, strict=True))[ROWS : ROWS + 2]:
        assert torch.allclose(first + second, alone, atol=1e-5)


def test_statistics_are_those_over_all_images_in_both_processes(norms: tuple[Any, Any, Any]) -> None:
    for alone, first, second in list(zip(*norms, strict=True))[ROWS + 2 :]:
        assert torch.equal(first, second)
        assert torch.allclose(first, alone, rtol=1e-5)


def test_alone_the_batch_norms_stay_what_they_are() -> None:
    model = make_model()
    synchronize_batch_norms(model)
    assert not any(isinstance(module, GlobalBatchNorm) for module in model.modules())
