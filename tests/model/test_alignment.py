"""The alignment of tokens against its definition, one pair and one token at a time."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from diptych.model import alignment
from diptych.model.alignment import Alignment

ATTENDS = pytest.mark.parametrize(("text_attends", "image_attends"), [(True, False), (False, True), (True, True)])
LENGTHS = torch.tensor([5, 3, 1, 4])


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three images of nine places, four captions of up to five words."""
    generator = torch.Generator().manual_seed(0)
    grid, tokens = torch.randn(3, 9, 16, generator=generator), torch.randn(4, 5, 16, generator=generator)
    return grid, tokens, torch.arange(5) < LENGTHS[:, None]


def make(text_attends: bool = True, image_attends: bool = True) -> Alignment:
    torch.manual_seed(0)
    made = Alignment(16, text_attends=text_attends, image_attends=image_attends)
    for layer in (made.place, made.word):
        torch.nn.init.normal_(layer.weight, std=0.3)
        torch.nn.init.normal_(layer.bias, std=0.3)
    return made


def naive_cosine(queries: torch.Tensor, others: torch.Tensor, sharpness: float) -> float:
    """Mean cosine of each vector with the mean of `others` (K, d), of length one, weighted by their cosines with it."""
    cosines = []
    for vector in queries:
        weights = torch.tensor([sharpness * float(cosine_similarity(vector, other, dim=0)) for other in others])
        attended = sum(w * other / other.norm() for w, other in zip(weights.softmax(0), others, strict=True))
        cosines.append(float(cosine_similarity(vector, attended, dim=0)))
    return sum(cosines) / len(cosines)


@ATTENDS
def test_all_pairs_are_what_the_definition_says(text_attends: bool, image_attends: bool) -> None:
    made, (grid, tokens, mask) = make(text_attends, image_attends), inputs()
    with torch.no_grad():
        logits = made.all_pairs(grid, tokens, mask)
        sharpness, scale = made.log_sharpness.exp().item(), made.log_scale.exp().item()
        for i, image in enumerate(made.place(grid)):
            for j, words in enumerate(made.word(tokens)):
                words = words[: LENGTHS[j]]
                parts = [naive_cosine(words, image, sharpness)] * text_attends
                parts += [naive_cosine(image, words, sharpness)] * image_attends
                assert logits[i, j].item() == pytest.approx(scale * sum(parts) / len(parts), abs=1e-4)


@ATTENDS
def test_single_pairs_are_what_they_are_among_all(text_attends: bool, image_attends: bool) -> None:
    made, (grid, tokens, mask) = make(text_attends, image_attends), inputs()
    image, text = torch.tensor([0, 2, 1, 2, 0]), torch.tensor([3, 3, 0, 2, 1])
    expected = made.all_pairs(grid, tokens, mask)[image, text]
    torch.testing.assert_close(made.of_pairs(grid, tokens, mask, image, text), expected)
    torch.testing.assert_close(made.of_pairs(grid[image], tokens[text], mask[text]), expected)


@ATTENDS
def test_padding_is_not_attended_to(text_attends: bool, image_attends: bool) -> None:
    made, (grid, tokens, mask) = make(text_attends, image_attends), inputs()
    noisy = tokens.masked_fill(~mask.unsqueeze(-1), 1e3)
    torch.testing.assert_close(made.all_pairs(grid, tokens, mask), made.all_pairs(grid, noisy, mask))


def test_blocks_give_the_same_logits_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def computed() -> list[torch.Tensor]:
        made, (grid, tokens, mask) = make(), inputs()
        leaves = [grid.requires_grad_(), tokens.requires_grad_(), *made.parameters()]
        logits = made.all_pairs(grid, tokens, mask)
        return [logits, *torch.autograd.grad(logits.square().sum(), leaves)]

    at_once = computed()
    monkeypatch.setattr(alignment, "BLOCK_COSINES", 1)
    for block, whole in zip(computed(), at_once, strict=True):
        torch.testing.assert_close(block, whole)


def test_it_begins_with_the_cosines_of_the_tokens_as_they_are() -> None:
    grid, tokens, _ = inputs()
    made = Alignment(16, text_attends=True, image_attends=False)
    word = tokens[:1, :1]
    logit = made.all_pairs(grid[:1, :1], word, torch.ones(1, 1, dtype=torch.bool))
    assert logit.item() == pytest.approx(10 * float(cosine_similarity(grid[0, 0], word[0, 0], dim=0)), abs=1e-4)


def test_what_cancels_out_is_no_division_by_zero() -> None:
    made = Alignment(2, text_attends=True, image_attends=False)
    grid, word = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    leaves = [grid.requires_grad_(), word.requires_grad_()]
    logit = made.all_pairs(grid, word, torch.ones(1, 1, dtype=torch.bool))
    assert logit.item() == 0
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(logit.sum(), leaves))
