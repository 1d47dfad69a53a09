"""Devices: what is asked for, or a clear refusal."""

from __future__ import annotations

import pytest
import torch

from diptych.errors import DiptychError
from diptych.model.device import choose_device, choose_precision, set_threads


def test_auto_takes_a_gpu_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert choose_device("auto").type == expected


def test_a_device_that_is_not_there_is_refused() -> None:
    missing = "cuda" if not torch.cuda.is_available() else "mps"
    with pytest.raises(DiptychError, match=f"device is {missing}"):
        choose_device(missing)


@pytest.mark.parametrize("name", ["no", "bf16", "fp16"])
def test_a_precision_that_is_named_is_taken(name: str) -> None:
    assert choose_precision(name, torch.device("cpu")) == name


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "no")])
def test_auto_takes_bf16_where_the_device_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_tile": native})
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: native)
    assert choose_precision("auto", torch.device("cpu")) == expected
    assert choose_precision("auto", torch.device("cuda")) == expected
    assert choose_precision("auto", torch.device("mps")) == "no"


def test_this_machine_can_say_whether_it_computes_in_bf16() -> None:
    assert choose_precision("auto", torch.device("cpu")) in ("no", "bf16")


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        set_threads(1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
