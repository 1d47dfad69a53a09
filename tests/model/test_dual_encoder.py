"""The dual encoder: shapes, units, and features that depend on nothing but their own input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny import SIZE, make_model, model_settings

from diptych.config import Model
from diptych.errors import DiptychError
from diptych.model.dual_encoder import MAX_LOGIT_SCALE, build_model


def pixels(count: int) -> torch.Tensor:
    return torch.randint(256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_images_become_grid_tokens_and_unit_vectors() -> None:
    features = make_model().encode_images(pixels(3))
    assert features.grid.shape == (3, 16, 16)
    assert torch.allclose(features.pooled.norm(dim=1), torch.ones(3))
    assert features.pooled.dtype == torch.float32


def test_texts_become_token_states_and_unit_vectors() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    features = make_model().encode_texts(torch.tensor([[2, 5, 3], [2, 0, 0]]), mask)
    assert features.tokens.shape == (2, 3, 16)
    assert torch.allclose(features.pooled.norm(dim=1), torch.ones(2))


def test_the_temperature_starts_where_it_is_told_and_finds_back_from_its_bound() -> None:
    model = make_model()
    assert model.logit_scale.item() == pytest.approx(1 / 0.07)
    model.log_scale.data.fill_(9.0)
    model.bound_temperature()
    assert model.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE)
    model.logit_scale.backward()
    assert model.log_scale.grad is not None
    assert model.log_scale.grad.item() == pytest.approx(MAX_LOGIT_SCALE, rel=1e-4)


def test_pixels_are_normalized_by_mean_and_std_of_the_tower() -> None:
    model = make_model(
        image_tower={**model_settings().image_tower.model_dump(), "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    )
    seen = []
    model.image_tower.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    image = pixels(1)
    model.encode_images(image)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    assert torch.allclose(seen[0].permute(0, 2, 3, 1), (image / 255 - mean) / std, atol=1e-5)


def test_the_text_tower_mixes_its_last_layers() -> None:
    model = make_model()
    ids, mask = torch.tensor([[2, 5, 3]]), torch.ones(1, 3, dtype=torch.bool)
    hidden = model.text_tower.backbone(ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    model.text_tower.mix.data = torch.tensor([1.0, -1.0])
    first, second = torch.tensor([1.0, -1.0]).softmax(dim=0)
    expected = model.text_tower.projection(first * hidden[-2] + second * hidden[-1])
    assert torch.allclose(model.encode_texts(ids, mask).tokens, expected, atol=1e-6)


def test_bf16_autocast_keeps_embeddings_in_float32_and_close() -> None:
    model = make_model()
    exact = model.encode_images(pixels(4)).pooled
    with torch.autocast("cpu", torch.bfloat16):
        rough = model.encode_images(pixels(4)).pooled
    assert rough.dtype == torch.float32
    assert torch.allclose(exact, rough, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image_tower": {"config": {"hidden_sises": [8]}}}, "image_tower.config.hidden_sises"),
        ({"image_tower": {"config": {"depths": "two"}}}, "image_tower.config"),
        ({"image_tower": {"config": {"hidden_sizes": []}}}, "image_tower.config"),
        ({"text_tower": {"config": {"hidden_size": 33, "num_attention_heads": 2}}}, "text_tower.config"),
        ({"text_tower": {"config": {"hidden_act": "foo"}}}, "text_tower.config"),
        ({"text_tower": {"config": {"hidden_dropout_prob": 2.0}}}, "text_tower.config"),
        ({"text_tower": {"config": {"num_hidden_layers": 1}, "layers": 2}}, "text_tower.layers is 2"),
        (
            {"image_tower": {"config": {"model_type": "bert", "hidden_size": 16, "num_attention_heads": 2}}},
            "image tower",
        ),
    ],
)
def test_an_impossible_tower_is_an_error_that_names_it(changes: dict[str, Any], words: str) -> None:
    settings = Model.model_validate({**model_settings().model_dump(), **changes})
    with pytest.raises(DiptychError, match=words):
        build_model(settings, SIZE, 50, 0.07)


def test_a_pair_is_aligned_in_the_space_of_the_embeddings() -> None:
    model, generator = make_model(), torch.Generator().manual_seed(0)
    grid, tokens = torch.randn(2, 16, 16, generator=generator), torch.randn(3, 4, 16, generator=generator)
    mask = torch.arange(4) < torch.tensor([4, 2, 1])[:, None]
    image, text = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1])
    assert model.fusion.alignment is not None
    aligned = model.fusion.alignment.all_pairs(model.image_head(grid), model.text_head(tokens), mask)
    assert torch.equal(model.align(grid, tokens, mask), aligned)
    fused, by_index = model.fuse(grid, tokens, mask, image, text), model.fusion(grid, tokens, mask, image, text)
    torch.testing.assert_close(fused.alignment, aligned[image, text])
    assert torch.equal(fused.itm, by_index.itm)
    assert torch.equal(fused.joint, by_index.joint)


def test_the_alignment_learns_to_read_and_tells_the_towers_nothing() -> None:
    model, generator = make_model(), torch.Generator().manual_seed(0)
    grid, tokens = (torch.randn(2, n, 16, generator=generator, requires_grad=True) for n in (16, 4))
    model.align(grid, tokens, torch.ones(2, 4, dtype=torch.bool)).sum().backward()
    assert model.fusion.alignment is not None
    learning = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learning == {f"fusion.alignment.{name}" for name, _ in model.fusion.alignment.named_parameters()}
    assert grid.grad is None
    assert tokens.grad is None


def test_the_control_aligns_nothing() -> None:
    model = make_model(fusion={"attention": False})
    grid, tokens, mask = torch.ones(2, 16, 16), torch.ones(2, 4, 16), torch.ones(2, 4, dtype=torch.bool)
    assert not model.aligns
    assert model.fuse(grid, tokens, mask).alignment is None
