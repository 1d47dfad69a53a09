"""Floating-point operations: counted as formulas say."""

from __future__ import annotations

import logging
import sys

import pytest
import torch
from torch import nn

from diptych.training.flops import count_flops, matrix_product_rate


def test_a_linear_layer_takes_two_operations_a_weight_and_row_forward_and_four_backward() -> None:
    layer, rows = nn.Linear(5, 7, bias=False), torch.ones(3, 5, requires_grad=True)
    assert count_flops(lambda: layer(rows)) == 2 * 3 * 5 * 7
    assert count_flops(lambda: layer(rows).sum().backward()) == 3 * 2 * 3 * 5 * 7


def test_what_needs_no_gradient_takes_no_operations_backward() -> None:
    layer, rows = nn.Linear(5, 7, bias=False), torch.ones(3, 5)
    assert count_flops(lambda: layer(rows).sum().backward()) == 2 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_a_convolution_of_groups_takes_as_many_operations_backward_a_gradient_as_forward(groups: int) -> None:
    layer, images = nn.Conv2d(8, 8, 3, padding=1, groups=groups, bias=False), torch.ones(2, 8, 5, 5)
    forward = 2 * 2 * 25 * 8 * 9 * 8 // groups
    assert count_flops(lambda: layer(images)) == forward
    assert count_flops(lambda: layer(images).sum().backward()) == 2 * forward
    images.requires_grad_()
    assert count_flops(lambda: layer(images).sum().backward()) == 3 * forward


def test_without_triton_nothing_is_said_of_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "torch.utils.flop_counter", raising=False)
    monkeypatch.delattr("torch.utils.flop_counter", raising=False)
    log = logging.getLogger("torch.utils.flop_counter")
    monkeypatch.setattr(log, "handlers", [caplog.handler])
    log.setLevel(logging.NOTSET)
    assert count_flops(lambda: torch.ones(2, 3) @ torch.ones(3, 4)) == 2 * 2 * 3 * 4
    assert "torch.utils.flop_counter" in sys.modules
    assert not caplog.records


def test_a_device_has_a_rate() -> None:
    assert 1e7 < matrix_product_rate(torch.device("cpu"), "no") < 1e14
