"""The loop: it learns, selects on val, resumes to the bit, and stops on what is not a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from accelerate.state import AcceleratorState
from gloo import training_process
from tiny import make_model, open_prepared, train_settings, write_prepared

from diptych.data.prepared import Prepared
from diptych.errors import DiptychError
from diptych.model.dual_encoder import DualEncoder
from diptych.training.checkpoints import Checkpoints
from diptych.training.loop import Trainer


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return open_prepared(write_prepared(tmp_path_factory.mktemp("prepared") / "p"))


@pytest.fixture(autouse=True)
def fresh_process() -> Any:
    """One thread, and no precision that an earlier test has set."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    AcceleratorState._reset_state(reset_partial_state=True)


def trainer(prepared: Prepared, folder: Path, report: Any = lambda values, step: None, **changes: Any) -> Trainer:
    vocabulary_size = prepared.settings["vocabulary_size"]
    return Trainer(
        make_model(vocabulary_size),
        prepared.split("train"),
        prepared.split("val"),
        train_settings(**changes),
        seed=0,
        evaluation_batch=8,
        checkpoints=Checkpoints(folder, {}),
        report=report,
        device=torch.device("cpu"),
    )


def same_weights(one: DualEncoder, other: DualEncoder) -> bool:
    others = other.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in one.state_dict().items())


def test_the_loss_falls(prepared: Prepared, tmp_path: Path) -> None:
    history = trainer(prepared, tmp_path, epochs=6, learning_rate=3e-3).run().history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_the_same_seed_gives_the_same_bits(prepared: Prepared, tmp_path: Path) -> None:
    one, other = trainer(prepared, tmp_path / "1"), trainer(prepared, tmp_path / "2")
    assert one.run().history == other.run().history
    assert same_weights(one.model, other.model)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4, 5, 7])
def test_an_interrupted_training_resumes_to_the_bit(prepared: Prepared, tmp_path: Path, stop_at: int) -> None:
    """Four steps an epoch, a checkpoint every second one: the stop falls before, on and behind checkpoints."""
    whole = trainer(prepared, tmp_path / "whole")
    expected = whole.run()

    broken = trainer(prepared, tmp_path / "broken")
    train_step, steps = broken._train_step, 0

    def stopping(batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps > stop_at:
            raise KeyboardInterrupt
        return train_step(batch)

    broken._train_step = stopping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    torch.manual_seed(99)
    resumed = trainer(prepared, tmp_path / "broken")
    assert resumed.run() == expected
    assert same_weights(resumed.model, whole.model)


def test_a_finished_training_is_not_repeated(prepared: Prepared, tmp_path: Path) -> None:
    first = trainer(prepared, tmp_path)
    position = first.run()
    again = trainer(prepared, tmp_path)
    again._train_step = None  # type: ignore[assignment,method-assign]
    assert again.run() == position
    assert same_weights(first.model, again.model)


def test_the_weights_are_those_of_the_best_epoch_on_val(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(prepared, tmp_path, epochs=3)
    rsums, kept = iter([10.0, 30.0, 20.0]), []

    def validate() -> dict[str, float]:
        kept.append({name: tensor.clone() for name, tensor in made.model.state_dict().items()})
        return {"val_rsum": next(rsums)}

    monkeypatch.setattr(made, "_validate", validate)
    assert made.run().best_epoch == 2
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in made.model.state_dict().items())


def test_patience_ends_the_training(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(prepared, tmp_path, epochs=9, patience=2)
    rsums = iter([10.0, 30.0, 30.0, 20.0, 50.0])
    monkeypatch.setattr(made, "_validate", lambda: {"val_rsum": next(rsums)})
    assert [row["val_rsum"] for row in made.run().history] == [10.0, 30.0, 30.0, 20.0]


def test_a_loss_that_is_not_a_number_stops_with_step_and_images(prepared: Prepared, tmp_path: Path) -> None:
    made = trainer(prepared, tmp_path)
    made.model.image_head.weight.data[0, 0] = float("nan")
    images = next(made.plan.epoch(0)).image_ids
    with pytest.raises(DiptychError, match=f"epoch 1, step 1, with images .*{images[0]}"):
        made.run()


def test_a_temperature_without_bounds_is_an_error(prepared: Prepared, tmp_path: Path) -> None:
    made = trainer(prepared, tmp_path)
    made.model.log_scale.data.fill_(-1e4)
    with pytest.raises(DiptychError, match=r"lower train\.learning_rate"):
        made.run()


def test_losses_rates_throughput_and_recalls_are_reported(prepared: Prepared, tmp_path: Path) -> None:
    reported: list[tuple[str, int]] = []
    made = trainer(
        prepared, tmp_path, report=lambda values, step: reported.extend((name, step) for name in values), batch_size=2
    )
    made.run()
    assert {("loss", 10), ("contrastive", 20), ("matching", 10), ("learning_rate", 10), ("temperature", 10)} <= set(
        reported
    )
    assert {("images_per_second", 16), ("captions_per_second", 32), ("val_rsum", 32)} <= set(reported)
    assert {("waiting_share", 16), ("peak_memory_gib", 32)} <= set(reported)


def test_bf16_trains_with_float32_weights(prepared: Prepared, tmp_path: Path) -> None:
    made = trainer(prepared, tmp_path, precision="bf16")
    history = made.run().history
    assert history[-1]["loss"] < history[0]["loss"]
    assert {parameter.dtype for parameter in made.model.parameters()} == {torch.float32}


def test_without_matching_the_fusion_stays_as_it_was(prepared: Prepared, tmp_path: Path) -> None:
    made = trainer(prepared, tmp_path, objectives={"matching": 0.0})
    before = made.model.fusion.score.weight.clone()
    assert made.run().history[-1]["matching"] == 0
    assert torch.equal(before, made.model.fusion.score.weight)


def test_a_tower_is_released_after_its_frozen_epochs(prepared: Prepared, tmp_path: Path) -> None:
    made = trainer(prepared, tmp_path, epochs=2, image_tower_frozen_epochs=1)
    first = next(made.model.image_tower.backbone.parameters())
    seen = [first.detach().clone()]
    validate = made._validate

    def watching() -> dict[str, float]:
        seen.append(first.detach().clone())
        return validate()

    made._validate = watching  # type: ignore[method-assign]
    made.run()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_training_with_a_release_resumes_to_the_bit(prepared: Prepared, tmp_path: Path) -> None:
    changes = {"epochs": 3, "text_tower_frozen_epochs": 1}
    whole = trainer(prepared, tmp_path / "whole", **changes)
    expected = whole.run()
    broken = trainer(prepared, tmp_path / "broken", **changes)
    validate, epochs = broken._validate, 0

    def stopping() -> dict[str, float]:
        nonlocal epochs
        epochs += 1
        if epochs == 3:
            raise KeyboardInterrupt
        return validate()

    broken._validate = stopping  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        broken.run()
    resumed = trainer(prepared, tmp_path / "broken", **changes)
    assert resumed.run() == expected
    assert same_weights(resumed.model, whole.model)


def test_too_few_images_are_an_error_before_training(tmp_path: Path) -> None:
    small = open_prepared(write_prepared(tmp_path / "p", train=1))
    with pytest.raises(DiptychError, match="1 image"):
        trainer(small, tmp_path)


def test_two_processes_learn_the_weights_of_one(tmp_path: Path) -> None:
    """Without dropout and matching, whose random draws differ between processes; resumed in the middle, too."""
    write_prepared(tmp_path / "p")
    mp.spawn(training_process, args=(str(tmp_path), 1), nprocs=1)
    mp.spawn(training_process, args=(str(tmp_path), 2), nprocs=2)
    alone, first, second = (torch.load(tmp_path / name, weights_only=True) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert all(torch.equal(first[name], tensor) for name, tensor in second.items())
    floats = [name for name, tensor in alone.items() if tensor.is_floating_point() and "running" not in name]
    assert all(torch.allclose(alone[name], first[name], atol=2e-4) for name in floats)
