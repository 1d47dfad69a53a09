"""Learned heads: trained the same each time, and better after each of the first epochs."""

from __future__ import annotations

import torch
from coloured_things import world

from diptych.retrieval.learned_heads import DIM, EPOCHS, learned_heads, linear_layers
from diptych.retrieval.metrics import mean_log_rank
from diptych.retrieval.ranking import ranks_from_embeddings


def test_an_epoch_gives_heads_that_later_epochs_do_not_change() -> None:
    train, val = world(300, 0), world(60, 1)
    epochs = learned_heads(train, linear_layers)
    first = next(epochs)
    image, text = first(val)
    rest = list(epochs)
    assert len(rest) == EPOCHS - 1
    assert all(torch.equal(*sides) for sides in zip(first(val), (image, text), strict=True))
    assert (image.shape, text.shape) == ((60, DIM), (len(val.text), DIM))

    def log_rank(baseline) -> float:
        image, text = baseline(val)
        return mean_log_rank(*ranks_from_embeddings(image, text, val.image_of_caption).ranks)

    assert log_rank(rest[-1]) < log_rank(first)


def test_smoothed_targets_train_other_heads_and_none_the_same_bits() -> None:
    train, val = world(60, 0), world(20, 1)

    def image_after_an_epoch(*smoothing: float) -> torch.Tensor:
        image, _ = next(learned_heads(train, linear_layers, *smoothing))(val)
        return image

    assert torch.equal(image_after_an_epoch(0.0), image_after_an_epoch())
    assert not torch.allclose(image_after_an_epoch(0.4), image_after_an_epoch(), atol=1e-4)


def test_training_leaves_the_random_state_outside_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(learned_heads(world(30, 0), linear_layers))
    assert torch.equal(torch.rand(3), expected)
