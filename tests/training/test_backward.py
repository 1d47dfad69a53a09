"""The backward pass: a batch at once, or in chunks as large as memory allows, with the same result."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from interrupting import forget_accelerator
from tiny import make_model, open_prepared, write_prepared

from diptych.config import Objectives
from diptych.errors import DiptychError
from diptych.model.dual_encoder import DualEncoder, ImageFeatures
from diptych.training.backward import Backward
from diptych.training.batches import Batch, BatchPlan
from diptych.training.step import TrainingStep

pytestmark = pytest.mark.slow

IMAGES = 4


@pytest.fixture(autouse=True)
def fresh_process():
    yield
    forget_accelerator()


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Batch:
    split = open_prepared(write_prepared(tmp_path_factory.mktemp("prepared") / "p", train=IMAGES)).split("train")
    return next(BatchPlan(split, batch_size=IMAGES, captions_per_image=2, seed=0).epoch(0))


def make_backward(chunk_size: int | None) -> Backward:
    step = TrainingStep(make_model(200), Objectives(), seed=0).train()
    return Backward(step, Accelerator(cpu=True), chunk_size)


def outcome(backward: Backward, batch: Batch) -> dict[str, torch.Tensor]:
    """Return the loss, the gradients and the buffers, dropout drawn from the same seed."""
    torch.manual_seed(5)
    losses = backward(batch)
    gradients = {name: weight.grad for name, weight in backward.step.named_parameters() if weight.grad is not None}
    return {"loss": losses.total.detach(), **gradients, **dict(backward.step.named_buffers())}


def limit_memory(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    """Have memory suffice for a number of images."""
    encode_images = DualEncoder.encode_images

    def encode(model: DualEncoder, pixels: torch.Tensor) -> ImageFeatures:
        features = encode_images(model, pixels)
        if len(pixels) > images:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return features

    monkeypatch.setattr(DualEncoder, "encode_images", encode)


def test_a_chunk_as_large_as_the_batch_is_the_batch_at_once(batch: Batch) -> None:
    whole, chunk = (outcome(make_backward(size), batch) for size in (None, IMAGES))
    assert whole.keys() == chunk.keys()
    assert all(torch.equal(chunk[name], tensor) for name, tensor in whole.items())


@pytest.mark.parametrize("images", [1, 2, 3])
def test_where_memory_does_not_suffice_chunks_are_halved_and_nothing_of_the_attempt_is_left(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, images: int
) -> None:
    size = 1 if images == 1 else 2
    expected = outcome(make_backward(size), batch)
    limit_memory(monkeypatch, images)
    backward = make_backward(None)
    result = outcome(backward, batch)
    assert backward.chunk_size == size
    assert result.keys() == expected.keys()
    assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())
    assert "Memory does not suffice for 4 images at once: going on with 2." in caplog.text


def test_memory_that_does_not_suffice_for_one_image_is_an_error(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, 0)
    with pytest.raises(DiptychError, match=r"for 1 image\(s\) at once \(CUDA out of memory\)\. Set train\.chunk_size"):
        make_backward(None)(batch)
