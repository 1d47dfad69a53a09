"""The estimate of a training's time: what is measured, and how it adds up."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tiny import model_settings, train_settings

from diptych.advice import timing
from diptych.advice.timing import Speed, measure_speed
from diptych.config import Params

CPU = torch.device("cpu")
RELEASED = {"lr_multiplier": 0.1, "frozen_epochs": 1, "top_layers": 1}


def params(**train: object) -> Params:
    content = {"preprocess": {"image_size": 32}, "model": model_settings(), "train": train_settings(**train)}
    return Params.model_validate(content)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every timed piece of work takes one second; these are their names."""
    names: list[str] = []

    def measured(work: Callable[[], object], _: torch.device) -> float:
        work()
        names.append(getattr(work, "func", work).__name__)
        return 1.0

    monkeypatch.setattr(timing, "_seconds", measured)
    return names


def test_features_of_what_is_frozen_are_timed_apart(rounds: list[str]) -> None:
    own = params(epochs=3, image_tower=RELEASED, text_tower=RELEASED, batch_size=4)
    speed = measure_speed(own, 6, CPU)
    assert rounds == ["compute", "_train", "compute", "_train"]
    assert speed == Speed(first=1 / 4, last=1 / 4, features=2 / 4)


def test_towers_that_learn_from_the_beginning_have_no_features(rounds: list[str]) -> None:
    assert measure_speed(params(epochs=2), 6, CPU).features == 0
    assert rounds == ["_train", "_train"]


def test_images_that_vary_have_no_features(rounds: list[str]) -> None:
    own = params(epochs=3, image_tower=RELEASED, augmentation={"crop_scale": 0.5})
    measure_speed(own, 6, CPU)
    assert "compute" not in rounds


def test_the_parts_of_a_training_add_up() -> None:
    speed = Speed(first=0.1, last=1.0, features=2.0)
    mirrored = {"crop_scale": 1.0, "flip": 0.5, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    own = params(epochs=5, image_tower={**RELEASED, "frozen_epochs": 3})
    assert speed.minutes(own, 60) == pytest.approx(2.0 + 3 * 0.1 + 2 * 1.0)
    own = params(epochs=5, image_tower={**RELEASED, "frozen_epochs": 3}, augmentation=mirrored)
    assert speed.minutes(own, 60) == pytest.approx(4.0 + 3 * 0.1 + 2 * 1.0)


def test_real_seconds_are_positive() -> None:
    speed = measure_speed(params(epochs=2), 6, CPU)
    assert speed.first > 0
    assert speed.last > 0
