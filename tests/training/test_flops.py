"""Floating-point operations: counted as formulas say."""

from __future__ import annotations

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


def test_a_device_has_a_rate() -> None:
    assert 1e7 < matrix_product_rate(torch.device("cpu"), "no") < 1e14
