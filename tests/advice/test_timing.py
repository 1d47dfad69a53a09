"""The estimate of a training's time: what is measured, and how it adds up."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny import model_settings, train_settings

from diptych.advice import timing
from diptych.advice.timing import Speed, measure_speed
from diptych.config import Params
from diptych.training.batches import Batch

CPU = torch.device("cpu")
RELEASED = {"lr_multiplier": 0.1, "frozen_epochs": 1, "top_layers": 1}


def params(**train: object) -> Params:
    content = {"preprocess": {"image_size": 32}, "model": model_settings(), "train": train_settings(**train)}
    return Params.model_validate(content)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every timed piece of work takes one second; these are their names."""
    names: list[str] = []

    def measured(work: partial[object], _: torch.device) -> float:
        work()
        names.append(work.func.__name__)
        return 1.0

    monkeypatch.setattr(timing, "_seconds", measured)
    return names


def test_features_of_what_is_frozen_are_timed_apart(rounds: list[str]) -> None:
    own = params(epochs=3, image_tower=RELEASED, text_tower=RELEASED, batch_size=4)
    speed = measure_speed(own, 6, CPU)
    assert rounds == ["features", "features", "_train", "features", "features", "_train"]
    assert speed == Speed(first=1 / 4, last=1 / 4, image_features=2 / 4, text_features=2 / 4)


def test_features_that_stay_are_timed_once(rounds: list[str]) -> None:
    own = params(epochs=3, image_tower={"lr_multiplier": 0.0}, batch_size=4)
    assert measure_speed(own, 6, CPU).image_features == 1 / 4
    assert rounds == ["features", "_train", "_train"]


def test_towers_that_learn_from_the_beginning_have_no_features(rounds: list[str]) -> None:
    speed = measure_speed(params(epochs=2), 6, CPU)
    assert speed.image_features == speed.text_features == 0
    assert rounds == ["_train", "_train"]


def test_images_that_vary_have_no_features(rounds: list[str]) -> None:
    own = params(epochs=3, image_tower=RELEASED, augmentation={"crop_scale": 0.5})
    assert measure_speed(own, 6, CPU).image_features == 0


def test_a_large_batch_repeats_a_few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Batch] = []
    monkeypatch.setattr(timing, "_train", lambda step, optimizer, batch, params: seen.append(batch))
    measure_speed(params(epochs=2, batch_size=70, captions_per_image=2), 6, CPU)
    batch = seen[0]
    assert (len(batch.images), len(batch.mask), len(batch.image_ids)) == (70, 140, 70)
    assert torch.equal(batch.images[:6], batch.images[64:])
    assert torch.equal(batch.image_of_caption, torch.arange(140) // 2)


@pytest.mark.parametrize(("fusion_epochs", "learns"), [(None, True), (1, False)])
def test_a_fusion_that_learns_with_the_towers_counts(
    monkeypatch: pytest.MonkeyPatch, fusion_epochs: int | None, learns: bool
) -> None:
    weights: list[float] = []
    monkeypatch.setattr(timing, "_train", lambda step, *_: weights.append(step.objectives.itm))
    measure_speed(params(epochs=2, fusion_epochs=fusion_epochs), 6, CPU)
    assert {weight > 0 for weight in weights} == {learns}


def test_the_parts_of_a_training_add_up() -> None:
    speed = Speed(first=0.1, last=1.0, image_features=2.0, text_features=0.5)
    mirrored = {"crop_scale": 1.0, "flip": 0.5, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    own = params(epochs=5, image_tower={**RELEASED, "frozen_epochs": 3})
    assert speed.minutes(own, 60) == pytest.approx(2.5 + 3 * 0.1 + 2 * 1.0)
    own = params(epochs=5, image_tower={**RELEASED, "frozen_epochs": 3}, augmentation=mirrored)
    assert speed.minutes(own, 60) == pytest.approx(4.5 + 3 * 0.1 + 2 * 1.0)


def test_real_seconds_are_positive() -> None:
    speed = measure_speed(params(epochs=3, image_tower=RELEASED, text_tower=RELEASED), 6, CPU)
    assert min(speed.first, speed.last, speed.image_features, speed.text_features) > 0
