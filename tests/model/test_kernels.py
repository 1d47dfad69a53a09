"""Kernels for learning on the CPU compute what torch's own choice computes, in the precision that they promise."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import make_model
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import _get_current_function_mode_stack

from diptych.model.kernels import choose_attention, learning_kernels

CPU = torch.device("cpu")
IDS, MASK = torch.tensor([[2, 5, 3, 7], [2, 3, 0, 0]]), torch.tensor([[True] * 4, [True, True, False, False]])


def half() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def depthwise(learns: bool = True) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 8, 5, padding=2, groups=8).requires_grad_(learns)


def test_depthwise_convolutions_that_learn_leave_autocast() -> None:
    x = torch.randn(2, 8, 7, 7).bfloat16()
    with half():
        assert depthwise()(x).dtype == torch.bfloat16
        with learning_kernels(CPU):
            learned, frozen, dense = depthwise()(x), depthwise(learns=False)(x), nn.Conv2d(8, 8, 1)(x)
            with torch.no_grad():
                cached = depthwise()(x)
    assert torch.equal(learned, depthwise()(x.float()))
    assert torch.equal(cached, learned)
    assert frozen.dtype == dense.dtype == torch.bfloat16


def test_operations_are_looked_at_within_autocast_alone() -> None:
    with learning_kernels(CPU):
        assert not _get_current_function_mode_stack()
    with half(), learning_kernels(CPU):
        assert len(_get_current_function_mode_stack()) == 1


def test_gradients_of_depthwise_convolutions_are_those_of_float32() -> None:
    x, y = torch.randn(2, 8, 7, 7, requires_grad=True), depthwise()
    expected = torch.autograd.grad(y(x).square().sum(), [x, *y.parameters()])
    with half(), learning_kernels(CPU):
        loss = y(x).square().sum()
    for gradient, wanted in zip(torch.autograd.grad(loss, [x, *y.parameters()]), expected, strict=True):
        assert torch.equal(gradient, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_that_of_the_formula(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    mask = torch.tensor([True, True, True, False, True])
    with learning_kernels(CPU):
        result = scaled_dot_product_attention(query, key, value, attn_mask=mask)
    weights = (query.double() @ key.double().mT / 8**0.5).masked_fill(~mask, float("-inf")).softmax(dim=-1)
    expected = weights @ value.double()
    tolerance = 1e-6 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)
    results, wanted = (torch.autograd.grad(out.square().sum(), [query, key, value]) for out in (result, expected))
    for gradient, right in zip(results, wanted, strict=True):
        torch.testing.assert_close(gradient, right, atol=8 * tolerance, rtol=8 * tolerance)


def test_a_text_tower_learns_the_same_with_either_kernel() -> None:
    tower = make_model().text_tower.train()
    tower.backbone.eval()
    twin = copy.deepcopy(tower)
    tower(IDS, MASK)[MASK].square().sum().backward()
    with learning_kernels(CPU):
        loss = twin(IDS, MASK)[MASK].square().sum()
    loss.backward()
    for parameter, other in zip(tower.parameters(), twin.parameters(), strict=True):
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, other.grad, atol=1e-4, rtol=1e-4)


def test_what_was_set_is_set_again_and_other_devices_are_left_alone() -> None:
    allowed = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed
    before = allowed()
    with learning_kernels(torch.device("cuda")):
        assert allowed() is before
        assert torch.backends.cuda.flash_sdp_enabled()
    with pytest.raises(RuntimeError, match="stop"), learning_kernels(CPU):
        assert allowed()
        assert not torch.backends.cuda.flash_sdp_enabled()
        raise RuntimeError("stop")
    assert allowed() is before
    assert torch.backends.cuda.flash_sdp_enabled()


def test_cudnns_attention_is_left_out_on_a_gpu() -> None:
    enabled = torch.backends.cuda.cudnn_sdp_enabled
    before = enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        choose_attention(CPU)
        assert enabled()
        choose_attention(torch.device("cuda"))
        assert not enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
