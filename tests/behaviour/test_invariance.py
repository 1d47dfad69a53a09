"""What the model's outputs may depend on, and what they may not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import SIZE, make_model, open_prepared, write_prepared

from diptych.data.prepared import PreparedSplit
from diptych.model.dual_encoder import DualEncoder


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> PreparedSplit:
    return open_prepared(write_prepared(tmp_path_factory.mktemp("prepared") / "p")).split("train")


@pytest.fixture(scope="module", params=["mean", "max", "generalized"])
def model(request: pytest.FixtureRequest) -> DualEncoder:
    from tiny import model_settings

    settings = model_settings()
    towers: dict[str, Any] = {
        name: {**getattr(settings, name).model_dump(), "pooling": request.param}
        for name in ("image_tower", "text_tower")
    }
    return make_model(300, **towers)


def batch(split: PreparedSplit, captions: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The captions' images, token ids and mask."""
    ids, mask = split.tokens(np.array(captions))
    pixels = split.pixels(split.image_of_caption[captions])
    return torch.from_numpy(pixels), torch.from_numpy(ids), torch.from_numpy(mask)


def fused_scores(model: DualEncoder, pixels: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        texts = model.encode_texts(ids, mask)
        return model.fuse(model.encode_images(pixels).grid, texts.tokens, texts.mask).itm


def test_outputs_do_not_depend_on_what_else_is_in_the_batch(model: DualEncoder, split: PreparedSplit) -> None:
    pixels, ids, mask = batch(split, list(range(12)))
    together = fused_scores(model, pixels, ids, mask)
    for place, caption in enumerate(range(12)):
        alone = fused_scores(model, *batch(split, [caption]))
        assert torch.allclose(together[place], alone[0], atol=1e-5)
    with torch.no_grad():
        images = torch.cat([model.encode_images(pixels[i : i + 1]).pooled for i in range(12)])
        texts = torch.cat([model.encode_texts(*batch(split, [i])[1:]).pooled for i in range(12)])
        assert torch.allclose(model.encode_images(pixels).pooled, images, atol=1e-5)
        assert torch.allclose(model.encode_texts(ids, mask).pooled, texts, atol=1e-5)


def test_the_order_of_the_batch_does_not_matter(model: DualEncoder, split: PreparedSplit) -> None:
    pixels, ids, mask = batch(split, list(range(8)))
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])
    shuffled = fused_scores(model, pixels[order], ids[order], mask[order])
    assert torch.allclose(fused_scores(model, pixels, ids, mask)[order], shuffled, atol=1e-5)


def test_shuffling_the_pairing_changes_the_fused_scores(model: DualEncoder, split: PreparedSplit) -> None:
    pixels, ids, mask = batch(split, list(range(8)))
    paired = fused_scores(model, pixels, ids, mask)
    shuffled = fused_scores(model, pixels.roll(3, dims=0), ids, mask)
    assert (paired - shuffled).abs().max() > 1e-3


def test_padding_changes_nothing(model: DualEncoder, split: PreparedSplit) -> None:
    pixels, ids, mask = batch(split, list(range(8)))
    longer_ids = torch.nn.functional.pad(ids, (0, 7), value=0)
    longer_mask = torch.nn.functional.pad(mask, (0, 7))
    assert torch.allclose(
        fused_scores(model, pixels, ids, mask), fused_scores(model, pixels, longer_ids, longer_mask), atol=1e-5
    )
    with torch.no_grad():
        short, long = model.encode_texts(ids, mask).pooled, model.encode_texts(longer_ids, longer_mask).pooled
    assert torch.allclose(short, long, atol=1e-5)


def test_what_stands_in_the_padding_changes_nothing(model: DualEncoder, split: PreparedSplit) -> None:
    pixels, ids, mask = batch(split, list(range(8)))
    other = ids.masked_fill(~mask, 7)
    assert torch.allclose(fused_scores(model, pixels, ids, mask), fused_scores(model, pixels, other, mask), atol=1e-5)


def test_evaluation_mode_draws_nothing(model: DualEncoder, split: PreparedSplit) -> None:
    inputs = batch(split, list(range(4)))
    assert torch.equal(fused_scores(model, *inputs), fused_scores(model, *inputs))
    assert inputs[0].shape[1:] == (SIZE, SIZE, 3)
