"""Fusion: it looks at both sides, at every real token, and at no padding."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from diptych.config import Fusion
from diptych.model.fusion import CrossAttention, CrossAttentionFusion, FusionLayer, Side, make_fusion

Direction = Literal["both", "text_to_image", "image_to_text"]
DIRECTIONS = pytest.mark.parametrize("direction", ["both", "text_to_image", "image_to_text"])


def inputs(pairs: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(pairs, 9, 16, generator=generator)
    tokens = torch.randn(pairs, 5, 16, generator=generator)
    return grid, tokens, torch.arange(5) < torch.tensor([[5], [3], [1], [4]])[:pairs]


def fusion(direction: Direction = "both") -> CrossAttentionFusion:
    torch.manual_seed(0)
    return CrossAttentionFusion(16, 9, Fusion(layers=2, heads=2, direction=direction)).eval()


def test_shapes_are_those_documented() -> None:
    fused = fusion()(*inputs())
    assert fused.joint.shape == (4, 16)
    assert fused.itm.shape == (4,)


def test_cross_attention_equals_attention_written_out() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(16, 1, 0.0).eval()
    grid, tokens, mask = inputs()
    key, value = layer.key_value(layer.norm_context(tokens)).chunk(2, dim=2)
    scores = layer.query(layer.norm(grid)) @ key.transpose(1, 2) / 4
    weights = scores.masked_fill(~mask.unsqueeze(1), float("-inf")).softmax(dim=2)
    found = layer.output(weights @ value)
    seeing = grid + found
    looked = layer(Side(grid), None, Side(tokens), mask)
    assert torch.allclose(looked.tokens, seeing + layer.feed_forward(seeing), atol=1e-5)
    compared = layer.compared(grid)
    mean, deviation = compared.mean(2, keepdim=True), compared.std(2, correction=0, keepdim=True)
    own = (compared - mean) / deviation
    other = (found - found.mean(2, keepdim=True)) / found.std(2, correction=0, keepdim=True)
    assert torch.allclose(looked.agreement, (own * other).mean(dim=1), atol=1e-2)


def test_thoughts_of_tokens_are_the_same_without_those_of_padding() -> None:
    torch.manual_seed(0)
    layer = CrossAttention(16, 2, 0.0).eval()
    grid, tokens, mask = inputs()
    packed, padded = (layer(Side(tokens), own, Side(grid), None).tokens for own in (mask, None))
    assert not mask.all()
    assert torch.allclose(packed[mask], padded[mask], atol=1e-6)


@pytest.mark.parametrize("masked", [True, False])
def test_the_mean_of_tokens_is_the_same_before_and_after_what_is_linear(masked: bool) -> None:
    torch.manual_seed(0)
    layer = CrossAttention(16, 2, 0.3).eval()
    grid, tokens, mask = inputs()
    own = mask if masked else torch.ones_like(mask)
    every = layer(Side(tokens), own, Side(grid), None)
    mean = layer(Side(tokens), mask if masked else None, Side(grid), None, mean=True)
    slow = torch.stack([of_pair[there].mean(dim=0) for of_pair, there in zip(every.tokens, own, strict=True)])
    assert torch.allclose(mean.tokens, slow, atol=1e-6)
    assert torch.allclose(mean.agreement, every.agreement, atol=1e-6)


@DIRECTIONS
def test_the_last_layer_gives_the_means_of_what_a_layer_gives(direction: Direction) -> None:
    grid, tokens, mask = inputs()
    layer = fusion(direction).layers[1]
    assert isinstance(layer, FusionLayer)
    text, image, agreement = layer(Side(tokens), Side(grid), mask)
    text_mean, image_mean, same = layer.means(Side(tokens), Side(grid), mask)
    assert torch.allclose(image_mean, image.values.mean(dim=1), atol=1e-6)
    assert torch.allclose(text_mean[2], text.values[2, 0], atol=1e-6)
    assert torch.allclose(text_mean[1], text.values[1, :3].mean(dim=0), atol=1e-6)
    assert torch.allclose(agreement, same, atol=1e-6)


@DIRECTIONS
@pytest.mark.parametrize("attention", [True, False])
def test_pairs_by_index_are_what_they_are_by_position(direction: Direction, attention: bool) -> None:
    settings = Fusion(layers=2, heads=2, direction=direction, attention=attention)
    torch.manual_seed(0)
    made, (grid, tokens, mask) = make_fusion(16, 9, settings).eval(), inputs()
    image, text = torch.tensor([0, 0, 1, 3, 3, 3]), torch.tensor([2, 1, 1, 0, 0, 2])
    by_position = made(grid[image], tokens[text], mask[text])
    by_index = made(grid, tokens, mask, image, text)
    assert torch.allclose(by_index.joint, by_position.joint, atol=1e-5)
    assert torch.allclose(by_index.itm, by_position.itm, atol=1e-5)


@pytest.mark.parametrize(
    ("direction", "looks"), [("both", {"text", "image"}), ("text_to_image", {"text"}), ("image_to_text", {"image"})]
)
def test_a_side_that_does_not_look_stays_as_it_is(direction: Direction, looks: set[str]) -> None:
    grid, tokens, mask = inputs()
    layer = fusion(direction).layers[0]
    text, image, _ = layer(Side(tokens), Side(grid), mask)
    sides = (("text", text, tokens), ("image", image, grid))
    assert looks == {side for side, after, before in sides if not after.values.equal(before)}


@pytest.mark.parametrize("direction", ["text_to_image", "image_to_text"])
def test_one_direction_learns_with_every_weight_that_it_has(direction: Direction) -> None:
    model = fusion(direction)
    (model(*inputs()).itm.sum() + model.alignment.of_pairs(*inputs()).sum()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@DIRECTIONS
def test_padding_is_not_looked_at(direction: Direction) -> None:
    grid, tokens, mask = inputs()
    noisy = tokens.masked_fill(~mask.unsqueeze(-1), 1e3)
    model = fusion(direction)
    assert torch.allclose(model(grid, tokens, mask).itm, model(grid, noisy, mask).itm, atol=1e-5)


def test_a_pair_does_not_depend_on_the_other_pairs() -> None:
    grid, tokens, mask = inputs()
    model = fusion()
    alone = torch.cat([model(grid[i : i + 1], tokens[i : i + 1], mask[i : i + 1]).joint for i in range(4)])
    assert torch.allclose(model(grid, tokens, mask).joint, alone, atol=1e-5)


@DIRECTIONS
def test_either_side_changes_the_score(direction: Direction) -> None:
    grid, tokens, mask = inputs()
    model = fusion(direction)
    score = model(grid, tokens, mask).itm
    assert not torch.allclose(score, model(grid.roll(1, dims=0), tokens, mask).itm, atol=1e-4)
    assert not torch.allclose(score, model(grid, tokens.roll(1, dims=0), mask.roll(1, dims=0)).itm, atol=1e-4)


def test_the_place_of_a_grid_token_matters() -> None:
    grid, tokens, mask = inputs()
    model = fusion()
    torch.nn.init.normal_(model.position)
    assert not torch.allclose(model(grid, tokens, mask).itm, model(grid.flip(1), tokens, mask).itm, atol=1e-4)


@pytest.mark.parametrize("direction", ["both", "text_to_image"])
def test_the_control_has_as_many_weights_as_the_fusion(direction: Direction) -> None:
    settings = Fusion(layers=3, heads=2, direction=direction)
    attention, control = (
        sum(parameter.numel() for parameter in make_fusion(32, 49, config).parameters())
        for config in (settings, settings.model_copy(update={"attention": False}))
    )
    assert control == pytest.approx(attention, rel=0.02)


def test_the_control_sees_the_means_of_both_sides_and_nothing_else() -> None:
    control = make_fusion(16, 9, Fusion(layers=1, heads=2, attention=False)).eval()
    grid, tokens, mask = inputs()
    expected = control(grid, tokens, mask).itm
    blurred = grid.mean(dim=1, keepdim=True).expand_as(grid)
    noisy = tokens.masked_fill(~mask.unsqueeze(-1), 7.0)
    assert torch.allclose(control(blurred, noisy, mask).itm, expected, atol=1e-6)
    assert not torch.allclose(control(grid.roll(1, 0), tokens, mask).itm, expected, atol=1e-3)
