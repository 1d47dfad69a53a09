"""Biases against their formula, one pair at a time, and what they are for: a hub that everybody finds."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import make_querybank
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize

from diptych.model import querybank
from diptych.model.querybank import QueryBank


def naive_bias(items: torch.Tensor, queries: torch.Tensor, scale: float) -> list[float]:
    return [
        math.log(sum(math.exp(scale * float(item.double() @ query.double())) for query in queries) / len(queries))
        / scale
        for item in items
    ]


@pytest.mark.parametrize("block", [1, 40, 4_000_000])
def test_a_bias_is_the_soft_maximum_over_the_other_sides_queries(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(querybank, "BLOCK_SCORES", block)
    bank = make_querybank()
    items = normalize(torch.randn(7, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    image, text = bank.image_bias(items, 14.0), bank.text_bias(items, 14.0)
    assert image.dtype == text.dtype == torch.float32
    assert image.tolist() == pytest.approx([0.75 * bias for bias in naive_bias(items, bank.text, 14.0)], abs=1e-6)
    assert text.tolist() == pytest.approx([0.75 * bias for bias in naive_bias(items, bank.image, 14.0)], abs=1e-6)


def test_a_bias_lies_between_the_mean_cosine_and_the_largest() -> None:
    bank = make_querybank()._replace(strength=1.0)
    items = normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(2)), dim=1)
    cosines = items @ bank.text.float().T
    for scale in (0.01, 10.0, 1_000.0):
        bias = bank.image_bias(items, scale)
        assert (cosines.mean(dim=1) - 1e-3 <= bias).all()
        assert (bias <= cosines.amax(dim=1) + 1e-3).all()


def test_a_large_scale_does_not_overflow() -> None:
    bank = QueryBank(torch.ones(1, 1).half(), torch.ones(1, 1).half())
    assert bank.image_bias(torch.ones(1, 1), 1e4).item() == pytest.approx(1.0)


def test_embeddings_on_the_cpu_meet_a_bank_that_was_loaded_to_a_gpu() -> None:
    """As in the evaluate stage; torch checks devices without having them."""
    with FakeTensorMode():
        image, text = (torch.empty(n, 16, dtype=torch.float16, device="cuda") for n in (8, 12))
        bank = QueryBank(image, text)
        assert bank.image_bias(torch.empty(5, 16), 14.0).device.type == "cpu"
