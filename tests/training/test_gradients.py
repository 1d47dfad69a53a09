"""Gradient caching: the gradients of the whole batch, whatever the size of the chunks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo import gradients_of, one_batch
from tiny import SIZE, make_model, open_prepared, write_prepared
from torch import Tensor, nn
from torch.nn.functional import pad

from diptych.config import Objectives
from diptych.model.dual_encoder import ImageFeatures, TextFeatures
from diptych.training.batches import Batch, BatchPlan
from diptych.training.gradients import backward_in_chunks
from diptych.training.step import Encoded, Losses, TrainingStep

IMAGES = 7
EVERY_OBJECTIVE: dict[str, Any] = {"label_smoothing": 0.4, "itm": 0.7, "simclr_image": 0.5, "simclr_text": 0.3}
Pair = tuple[Path, Callable[[str], tuple[Any, Any]]]
Backward = Callable[[TrainingStep, Batch, Any], Losses]


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """Captions of three lengths, each length a group of its own, and second views of the images."""
    split = open_prepared(write_prepared(tmp_path_factory.mktemp("prepared") / "p", train=IMAGES)).split("train")
    made = next(BatchPlan(split, batch_size=IMAGES, captions_per_image=2, seed=0).epoch(0))
    lengths = made.mask.sum(dim=1).tolist()
    ends = [row for row in range(1, len(lengths) + 1) if row == len(lengths) or lengths[row] > lengths[row - 1]]
    views = torch.randint(0, 256, (IMAGES, SIZE, SIZE, 3), generator=torch.Generator().manual_seed(0))
    return replace(made, groups=tuple((end, lengths[end - 1]) for end in ends), views=views.byte())


def make_step(dropout: float = 0.0, *, statistics_frozen: bool = True, **objectives: float) -> TrainingStep:
    step = TrainingStep(make_model(200), Objectives(**objectives), seed=0).train()
    for module in step.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = dropout
    step.model.image_tower.set_learning(True, statistics_frozen=statistics_frozen)
    return step


def in_chunks(size: int) -> Backward:
    def backward(step: TrainingStep, batch: Batch, autocast: Any) -> Losses:
        return backward_in_chunks(step, batch, size, autocast=autocast, backward=Tensor.backward)

    return backward


def at_once(step: TrainingStep, batch: Batch, autocast: Any) -> Losses:
    with autocast():
        losses = step(batch)
    losses.total.backward()
    return losses


def in_chunks_with_gradients_kept(size: int) -> Backward:
    """The slow twin: the towers over the same chunks, all of which stay in memory for one backward pass."""

    def backward(step: TrainingStep, batch: Batch, autocast: Any) -> Losses:
        with autocast():
            image_chunks = -(-len(batch.images) // size)
            images = [step.model.encode_images(chunk) for chunk in batch.images.tensor_split(image_chunks)]
            texts = texts_in_chunks(step, batch, size)
            views = text_views = None
            if batch.views is not None:
                pooled = [step.model.encode_images(chunk).pooled for chunk in batch.views.tensor_split(image_chunks)]
                views = torch.cat(pooled)
            if step.text_view_head:
                text_views = texts_in_chunks(step, batch, size).pooled
            image = ImageFeatures(*map(torch.cat, zip(*images, strict=True)))
            losses = step.losses(Encoded(image, texts, views, text_views), batch)
        losses.total.backward()
        return losses

    return backward


def texts_in_chunks(step: TrainingStep, batch: Batch, size: int) -> TextFeatures:
    group_of_row = [next(i for i, (end, _) in enumerate(batch.groups) if row < end) for row in range(len(batch.texts))]
    rows = -(-size * len(batch.texts) // len(batch.images))
    tokens, pooled = [], []
    for first in range(0, len(batch.texts), rows):
        groups: list[tuple[int, int]] = []
        for group, members in groupby(group_of_row[first : first + rows]):
            groups.append(((groups[-1][0] if groups else 0) + len(list(members)), batch.groups[group][1]))
        longest = groups[-1][1]
        texts, mask = (tensor[first : first + rows, :longest] for tensor in (batch.texts, batch.mask))
        features = step.model.encode_texts(texts, mask, groups)
        tokens.append(pad(features.tokens, (0, 0, 0, batch.mask.shape[1] - longest)))
        pooled.append(features.pooled)
    return TextFeatures(torch.cat(tokens), batch.mask, torch.cat(pooled))


def outcome(step: TrainingStep, batch: Batch, backward: Backward, autocast: Any = nullcontext) -> dict[str, Tensor]:
    """Losses, gradients, batch norms' statistics and the random state afterwards."""
    torch.manual_seed(5)
    losses = backward(step, batch, autocast)
    results = {f"loss {name}": value.detach() for name, value in losses._asdict().items()}
    results |= {f"gradient {name}": weight.grad for name, weight in step.named_parameters() if weight.grad is not None}
    results |= {f"buffer {name}": value for name, value in step.named_buffers()}
    return {**results, "random": torch.get_rng_state()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 2e-6) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(
            value, other[name], rtol=max(1e-4, tolerance), atol=tolerance, msg=f"{name} {{}}".format
        )


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_the_gradients_are_those_of_the_whole_batch(batch: Batch, size: int) -> None:
    expected = outcome(make_step(**EVERY_OBJECTIVE), batch, at_once)
    assert_same(outcome(make_step(**EVERY_OBJECTIVE), batch, in_chunks(size)), expected)
    assert expected["gradient model.image_tower.backbone.embedder.embedder.convolution.weight"].abs().max() > 1e-3


def test_without_itm_and_views_they_are_too(batch: Batch) -> None:
    alone = replace(batch, views=None)
    expected = outcome(make_step(itm=0.0), alone, at_once)
    assert_same(outcome(make_step(itm=0.0), alone, in_chunks(3)), expected)


@pytest.mark.parametrize("size", [2, 3])
def test_dropout_batch_norm_statistics_and_random_state_are_those_of_chunks_whose_gradients_are_kept(
    batch: Batch, size: int
) -> None:
    def step() -> TrainingStep:
        return make_step(0.3, statistics_frozen=False, **EVERY_OBJECTIVE)

    expected = outcome(step(), batch, in_chunks_with_gradients_kept(size))
    results = outcome(step(), batch, in_chunks(size))
    assert_same(results, expected)
    exact = [name for name in results if name.startswith(("loss", "buffer", "random"))]
    assert all(torch.equal(results[name], expected[name]) for name in exact)


def test_under_autocast_they_are_those_of_chunks_whose_gradients_are_kept(batch: Batch) -> None:
    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16)

    def step() -> TrainingStep:
        return make_step(0.3, statistics_frozen=False, **EVERY_OBJECTIVE)

    expected = outcome(step(), batch, in_chunks_with_gradients_kept(3), autocast)
    # Gradients of features and of weights are rounded to eight bits at other places.
    assert_same(outcome(step(), batch, in_chunks(3), autocast), expected, tolerance=2e-2)


def test_a_tower_that_is_frozen_has_no_gradients_and_the_rest_has_its_own(batch: Batch) -> None:
    def step() -> TrainingStep:
        made = make_step(**EVERY_OBJECTIVE)
        made.model.image_tower.set_learning(False)
        return made

    results = outcome(step(), batch, in_chunks(3))
    assert_same(results, outcome(step(), batch, at_once))
    assert not any(name.startswith("gradient model.image_tower.backbone") for name in results)


def test_kept_features_take_the_place_of_pixels_and_token_ids(batch: Batch) -> None:
    step = make_step(itm=1.0)
    with torch.no_grad():
        images = step.model.image_tower.features(batch.images).half()
        texts = step.model.text_tower.features(batch.texts, batch.mask).half()
    kept = replace(batch, images=images, texts=texts, views=None)
    results = outcome(make_step(itm=1.0), kept, in_chunks(3))
    assert_same(results, outcome(make_step(itm=1.0), kept, at_once))
    assert not any("backbone" in name for name in results if name.startswith("gradient"))


def test_gradients_are_added_to_those_that_are_there(batch: Batch) -> None:
    once, twice = make_step(), make_step()
    alone = replace(batch, views=None)
    outcome(once, alone, in_chunks(3))
    for _ in range(2):
        outcome(twice, alone, in_chunks(3))
    for one, two in zip(once.parameters(), twice.parameters(), strict=True):
        if one.grad is not None:
            assert two.grad is not None
            assert torch.allclose(2 * one.grad, two.grad, atol=1e-6)


def test_batch_norms_track_their_statistics_again_after_an_error(batch: Batch) -> None:
    step = make_step(statistics_frozen=False)
    step.model.text_tower.forward = None  # type: ignore[assignment,method-assign]
    with pytest.raises(TypeError):
        outcome(step, batch, in_chunks(3))
    norms = [module for module in step.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.track_running_stats and not norm.num_batches_tracked for norm in norms)


def test_two_processes_have_the_gradients_of_one_in_chunks(two_processes: Pair) -> None:
    folder, saved = two_processes
    prepared = open_prepared(folder / "p")
    alone = gradients_of(prepared, one_batch(prepared), 2, statistics_frozen=True)
    for frozen, *_ in saved("chunks"):
        assert_same(frozen, alone)


def test_two_processes_with_chunks_of_their_own_sizes_have_the_same_statistics_and_gradients(
    two_processes: Pair,
) -> None:
    """That they come to an end says that their batch norms have met as often."""
    for first, second in zip(*two_processes[1]("chunks"), strict=True):
        assert_same(first, second, tolerance=0)
