"""Devices: what is asked for, or a clear refusal."""

from __future__ import annotations

import pytest
import torch

from diptych.errors import DiptychError
from diptych.model.device import choose_device, set_threads


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").type == expected


def test_a_device_that_is_not_there_is_refused() -> None:
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(DiptychError, match=f"device is {missing}"):
        choose_device(missing)


def test_threads_are_set_and_returned() -> None:
    before = torch.get_num_threads()
    try:
        assert set_threads(1) == 1
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
