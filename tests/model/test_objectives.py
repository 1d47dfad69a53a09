"""Objectives against small, slow formulas."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import make_model
from torch.nn.functional import normalize

from diptych.model.dual_encoder import ImageFeatures, TextFeatures
from diptych.model.objectives import alignment_loss, contrastive_loss, draw_hard_negatives, itm_loss, nt_xent_loss

OWNER = torch.tensor([0, 0, 1, 2, 2, 2])


def vectors(count: int, seed: int) -> torch.Tensor:
    return normalize(torch.randn(count, 8, generator=torch.Generator().manual_seed(seed)), dim=1)


def slow_contrastive(
    image: torch.Tensor, text: torch.Tensor, owner: torch.Tensor, scale: float, smoothing: float
) -> float:
    """Caption by caption: against the other images' captions, and against the other images."""
    total = 0.0
    for caption, its_image in enumerate(owner.tolist()):
        others = [other for other in range(len(text)) if owner[other] != its_image]
        captions = [float(image[its_image] @ text[one]) for one in (caption, *others)]
        pictures = [float(image[its_image] @ text[caption])]
        pictures += [float(image[one] @ text[caption]) for one in range(len(image)) if one != its_image]
        for cosines in (captions, pictures):
            exponentials = [math.exp(scale * cosine) for cosine in cosines]
            for index, one in enumerate(exponentials):
                target = smoothing / len(cosines) + (1 - smoothing) * (index == 0)
                total -= target * math.log(one / sum(exponentials))
    return total / 2 / len(text)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_contrastive_loss_equals_the_slow_formula(smoothing: float) -> None:
    image, text = vectors(3, 0), vectors(6, 1)
    loss = contrastive_loss(image, text, OWNER, torch.tensor(5.0), smoothing=smoothing)
    assert math.isclose(loss.item(), slow_contrastive(image, text, OWNER, 5.0, smoothing), rel_tol=1e-5)


def test_gradients_have_the_same_bits_however_threads_take_turns() -> None:
    """With hundreds of captions in any order, torch would add the gradients of an index up in parallel."""
    image, text = vectors(128, 0).requires_grad_(), vectors(640, 1).requires_grad_()
    order = torch.randperm(640, generator=torch.Generator().manual_seed(0))
    owner = torch.arange(128).repeat_interleave(5)[order]
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        gradients = [
            torch.autograd.grad(contrastive_loss(image, text, owner, torch.tensor(16.0)), (image, text))
            for _ in range(8)
        ]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*both) for again in gradients[1:] for both in zip(gradients[0], again, strict=True))


def test_smoothed_targets_have_finite_gradients_where_siblings_are_left_out() -> None:
    text = vectors(6, 1).requires_grad_()
    contrastive_loss(vectors(3, 0), text, OWNER, torch.tensor(5.0), smoothing=0.4).backward()
    assert text.grad is not None
    assert text.grad.isfinite().all()


def test_siblings_are_never_negatives() -> None:
    """A second caption equal to the first costs nothing: with one image there is nothing to tell apart."""
    image, text = vectors(1, 0), vectors(1, 1).expand(4, -1)
    for smoothing in (0.0, 0.4):
        loss = contrastive_loss(image, text, torch.zeros(4, dtype=torch.long), torch.tensor(5.0), smoothing=smoothing)
        assert loss.item() == 0


def test_contrastive_gradient_reaches_the_temperature() -> None:
    scale = torch.tensor(5.0, requires_grad=True)
    contrastive_loss(vectors(3, 0), vectors(6, 1), OWNER, scale).backward()
    assert scale.grad is not None
    assert scale.grad.item() != 0


def slow_nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float, owner: list[int]) -> float:
    """View by view: against its partner and both views of the rows of other owners."""
    count, total = len(first), 0.0
    for views, partners in ((first, second), (second, first)):
        for row in range(count):
            others = [other for other in range(count) if owner[other] != owner[row]]
            positive = math.exp(float(views[row] @ partners[row]) / temperature)
            negatives = sum(
                math.exp(float(views[row] @ side[other]) / temperature) for side in (first, second) for other in others
            )
            total += -math.log(positive / (positive + negatives))
    return total / (2 * count)


def test_nt_xent_loss_equals_the_slow_formula() -> None:
    first, second = vectors(5, 0), vectors(5, 1)
    loss = nt_xent_loss(first, second, 0.2)
    assert loss.dtype == torch.float32
    assert math.isclose(loss.item(), slow_nt_xent(first, second, 0.2, list(range(5))), rel_tol=1e-5)


def test_nt_xent_loss_with_siblings_equals_the_slow_formula() -> None:
    first, second = vectors(6, 0), vectors(6, 1)
    loss = nt_xent_loss(first, second, 0.2, OWNER)
    assert math.isclose(loss.item(), slow_nt_xent(first, second, 0.2, OWNER.tolist()), rel_tol=1e-5)


@pytest.mark.parametrize("captions", [1, 4])
def test_nt_xent_of_a_single_image_is_zero_and_so_is_its_gradient(captions: int) -> None:
    first, second = vectors(captions, 0).requires_grad_(), vectors(captions, 1).requires_grad_()
    loss = nt_xent_loss(first, second, 0.01, torch.zeros(captions, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.count_nonzero() == second.grad.count_nonzero() == 0


def test_nt_xent_stays_in_full_precision_under_autocast() -> None:
    first, second = vectors(5, 0), vectors(5, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nt_xent_loss(first, second, 0.05)
    assert torch.equal(loss, nt_xent_loss(first, second, 0.05))


def test_nt_xent_falls_as_the_two_views_draw_near() -> None:
    first, second = vectors(5, 0), vectors(5, 1)
    nearer = normalize(first + 0.2 * second, dim=1)
    assert nt_xent_loss(first, nearer, 0.2) < nt_xent_loss(first, second, 0.2)


def uniforms(images: int, seed: int) -> torch.Tensor:
    return torch.rand(3, images, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Recorder:
    """A model whose fusion notes which pairs it is shown; grid and tokens hold the index of image and caption."""

    def __init__(self, logit_scale: float = 5.0) -> None:
        self.logit_scale = torch.tensor(logit_scale)
        self.pairs: list[tuple[int, int]] = []

    def fusion(
        self, grid: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, image: torch.Tensor, text: torch.Tensor
    ) -> object:
        images, texts = grid[image, 0, 0].int().tolist(), tokens[text, 0, 0].int().tolist()
        self.pairs = list(zip(images, texts, strict=True))
        fused = type("Fused", (), {})()
        fused.itm = torch.zeros(len(image))
        return fused


def features(images: int, captions: int) -> tuple[ImageFeatures, TextFeatures]:
    grid = torch.arange(images, dtype=torch.float32).view(-1, 1, 1)
    tokens = torch.arange(captions, dtype=torch.float32).view(-1, 1, 1)
    mask = torch.ones(captions, 1, dtype=torch.bool)
    return ImageFeatures(grid, vectors(images, 0)), TextFeatures(tokens, mask, vectors(captions, 1))


def test_matching_pairs_are_one_third_right_and_two_thirds_wrong() -> None:
    for seed in range(50):
        recorder = Recorder()
        pairs = draw_hard_negatives(recorder, *features(3, 6), OWNER, uniforms(3, seed))  # type: ignore[arg-type]
        loss = itm_loss(recorder, pairs)  # type: ignore[arg-type]
        right = [OWNER[caption] == image for image, caption in recorder.pairs]
        assert right == [True] * 3 + [False] * 6
        assert math.isclose(loss.item(), math.log(2), rel_tol=1e-6)


@pytest.mark.parametrize(("share", "judged"), [(0.01, 2), (0.5, 4), (0.6, 5), (1.0, 8)])
def test_matching_may_judge_the_pairs_of_a_share_of_the_images(share: float, judged: int) -> None:
    owner = torch.arange(16) // 2
    recorder = Recorder()
    pairs = draw_hard_negatives(recorder, *features(8, 16), owner, uniforms(8, 0))  # type: ignore[arg-type]
    itm_loss(recorder, pairs)  # type: ignore[arg-type]
    every = recorder.pairs
    itm_loss(recorder, pairs, share)  # type: ignore[arg-type]
    kept = [every[8 * kind + image] for kind in range(3) for image in range(judged)]
    assert recorder.pairs == kept


def test_likely_confusions_are_drawn_most() -> None:
    images, texts = features(3, 3)
    pooled = normalize(torch.tensor([[1.0, 0, 0], [0.95, 0.3, 0], [0, 0, 1.0]]), dim=1)
    recorder, drawn = Recorder(20.0), 0
    for seed in range(40):
        chosen = images._replace(pooled=pooled), texts._replace(pooled=pooled)
        pairs = draw_hard_negatives(recorder, *chosen, torch.arange(3), uniforms(3, seed))  # type: ignore[arg-type]
        itm_loss(recorder, pairs)  # type: ignore[arg-type]
        drawn += recorder.pairs[3] == (0, 1)
    assert drawn == 40


def test_matching_of_a_single_image_is_zero() -> None:
    model, (images, texts) = make_model(), features(1, 2)
    pairs = draw_hard_negatives(model, images, texts, torch.zeros(2, dtype=torch.long), uniforms(1, 0))
    assert itm_loss(model, pairs).item() == 0


class Products(Recorder):
    """Inner products of the first tokens in place of the alignment."""

    aligns = True

    def align(self, grid: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return grid[:, 0] @ tokens[:, 0].T


def test_alignment_loss_equals_the_slow_formula() -> None:
    images, texts = features(3, 6)
    grid, tokens = vectors(3, 2), vectors(6, 3)
    images, texts = images._replace(grid=grid[:, None]), texts._replace(tokens=tokens[:, None])
    pairs = draw_hard_negatives(Recorder(), images, texts, OWNER, uniforms(3, 0))  # type: ignore[arg-type]
    captions = tokens[pairs.positive]
    total = 0.0
    for i in range(3):
        own = math.exp(float(grid[i] @ captions[i]))
        total -= math.log(own / sum(math.exp(float(grid[i] @ caption)) for caption in captions))
        total -= math.log(own / sum(math.exp(float(image @ captions[i])) for image in grid))
    loss = alignment_loss(Products(), pairs)  # type: ignore[arg-type]
    assert loss.item() == pytest.approx(total / 6, abs=1e-5)


def test_without_alignment_its_loss_is_zero() -> None:
    model, (images, texts) = make_model(fusion={"attention": False}), features(3, 6)
    pairs = draw_hard_negatives(model, images, texts, OWNER, uniforms(3, 0))
    assert alignment_loss(model, pairs).item() == 0


def test_the_alignment_is_judged_by_one_caption_an_image() -> None:
    for seed in range(20):
        pairs = draw_hard_negatives(Recorder(), *features(3, 6), OWNER, uniforms(3, seed))  # type: ignore[arg-type]
        assert OWNER[pairs.positive].tolist() == [0, 1, 2]
