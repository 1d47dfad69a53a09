"""The loop: it learns, selects on val, resumes to the bit, and stops on what is not a number."""

from __future__ import annotations

import copy
import json
import shutil
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from gloo import trained
from interrupting import forget_accelerator, measure_no_speed, stop
from tiny import make_model, open_prepared, train_settings, write_prepared

from diptych.data.inputs import StoredImages, StoredTexts
from diptych.data.prepared import Prepared
from diptych.errors import DiptychError
from diptych.model.dual_encoder import DualEncoder
from diptych.retrieval.embedding import Embedded, embed_split
from diptych.training.backward import Backward
from diptych.training.checkpoints import Checkpoints
from diptych.training.compiling import Compilation
from diptych.training.feature_files import FeatureFiles
from diptych.training.features import FeatureCache
from diptych.training.flops import flops_per_image
from diptych.training.loop import Position, Setup, Trainer

pytestmark = pytest.mark.slow


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
    forget_accelerator()


@pytest.fixture(autouse=True)
def no_speed_test(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_no_speed(monkeypatch)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch, no_speed_test: None) -> None:
    """Operations are counted after all."""
    monkeypatch.setattr("diptych.training.loop.flops_per_image", flops_per_image)


def trainer(
    prepared: Prepared,
    folder: Path,
    report: Any = lambda values, step: None,
    features: FeatureCache | None = None,
    checkpoint_every: int = 100,
    **changes: Any,
) -> Trainer:
    """Checkpoints at the ends of epochs alone, unless others are asked for: writing one takes longer than a step."""
    vocabulary_size = prepared.settings["vocabulary_size"]
    return Trainer(
        make_model(vocabulary_size),
        prepared.split("train"),
        prepared.split("val"),
        train_settings(checkpoint_every=checkpoint_every, **changes),
        Setup(
            seed=0,
            evaluation_batch=8,
            checkpoints=Checkpoints(folder, {}),
            report=report,
            device=torch.device("cpu"),
            features=features,
        ),
    )


def ranks_on_val(monkeypatch: pytest.MonkeyPatch, *ranks: float) -> None:
    """Have validation measure these mean log ranks, one an epoch."""
    monkeypatch.setattr("diptych.training.loop.mean_log_rank", Mock(side_effect=ranks))


def before_validation(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Have the action done before val is embedded."""

    def embed(*arguments: Any, **options: Any) -> Embedded:
        action()
        return embed_split(*arguments, **options)

    monkeypatch.setattr("diptych.training.loop.embed_split", embed)


def same_weights(one: DualEncoder, other: DualEncoder | Whole) -> bool:
    others = other.weights if isinstance(other, Whole) else other.state_dict()
    return all(torch.equal(tensor, others[name]) for name, tensor in one.state_dict().items())


@dataclass(frozen=True)
class Whole:
    """What a training that nothing interrupted has left, in memory and in a folder that is only to be read."""

    position: Position
    weights: dict[str, torch.Tensor]
    checkpoints: Path
    kept: Path
    """Of the features that stay the same."""


@pytest.fixture(scope="module")
def whole(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Whole]:
    """Trains to the end, with kept features or without; once for all tests that ask for the same training."""

    @cache
    def train(keeps: bool, settings: str) -> Whole:
        folder = tmp_path_factory.mktemp("whole")
        kept = kept_in(folder / "kept") if keeps else None
        made = trainer(prepared, folder / "checkpoints", features=kept, **json.loads(settings))
        position = made.run()
        return Whole(position, made.model.state_dict(), folder / "checkpoints", folder / "kept")

    return lambda keeps=False, **settings: train(keeps, json.dumps(settings, sort_keys=True))


def interrupted(make: Callable[[], Trainer], steps: Sequence[int]) -> Trainer:
    """The last trainer of a training that was interrupted after each of these steps, and resumed each time."""
    for step in steps:
        made = make()
        stop(made, after=step)
        with pytest.raises(KeyboardInterrupt):
            made.run()
        torch.manual_seed(99)
    return make()


def test_the_loss_falls(prepared: Prepared, tmp_path: Path) -> None:
    history = trainer(prepared, tmp_path, epochs=6, learning_rate=3e-3).run().history
    assert history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_the_same_seed_gives_the_same_bits(prepared: Prepared, tmp_path: Path, whole: Callable[..., Whole]) -> None:
    one, other = whole(), trainer(prepared, tmp_path)
    assert other.run().history == one.position.history
    assert same_weights(other.model, one)


def test_an_interrupted_training_resumes_to_the_bit(
    prepared: Prepared, tmp_path: Path, whole: Callable[..., Whole]
) -> None:
    """Four steps an epoch, a checkpoint every second one: the stops fall before, on and behind checkpoints."""
    resumed = interrupted(lambda: trainer(prepared, tmp_path, checkpoint_every=2), (1, 2, 3, 4, 5, 7))
    assert resumed.run() == whole().position
    assert same_weights(resumed.model, whole())


def test_a_finished_training_is_not_repeated(prepared: Prepared, tmp_path: Path, whole: Callable[..., Whole]) -> None:
    again = trainer(prepared, shutil.copytree(whole().checkpoints, tmp_path / "finished"))
    stop(again, after=0)
    assert again.run() == whole().position
    assert same_weights(again.model, whole())


def test_the_weights_are_those_of_the_best_epoch_on_val(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(prepared, tmp_path, epochs=3)
    ranks_on_val(monkeypatch, 3.0, 1.0, 2.0)
    kept: list[dict[str, torch.Tensor]] = []
    before_validation(monkeypatch, lambda: kept.append(copy.deepcopy(made.model.state_dict())))
    assert made.run().best_epoch == 2
    assert all(torch.equal(tensor, kept[1][name]) for name, tensor in made.model.state_dict().items())


def test_patience_ends_the_training(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer(prepared, tmp_path, epochs=9, patience=2)
    ranks_on_val(monkeypatch, 3.0, 1.0, 1.0, 2.0, 0.5)
    assert [row["val_mean_log_rank"] for row in made.run().history] == [3.0, 1.0, 1.0, 2.0]


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
    assert {("loss", 10), ("contrastive", 20), ("itm", 10), ("learning_rate", 10), ("temperature", 10)} <= set(reported)
    assert {("images_per_second", 16), ("captions_per_second", 32), ("val_rsum", 32)} <= set(reported)
    assert {("waiting_share", 16), ("peak_memory_gib", 32)} <= set(reported)


def test_bf16_trains_with_float32_weights(prepared: Prepared, tmp_path: Path) -> None:
    made = trainer(prepared, tmp_path, precision="bf16")
    history = made.run().history
    assert history[-1]["loss"] < history[0]["loss"]
    assert {parameter.dtype for parameter in made.model.parameters()} == {torch.float32}


def test_without_matching_the_fusion_stays_as_it_was(prepared: Prepared, tmp_path: Path) -> None:
    made = trainer(prepared, tmp_path, objectives={"itm": 0.0})
    before = made.model.fusion.score.weight.clone()
    assert made.run().history[-1]["itm"] == 0
    assert torch.equal(before, made.model.fusion.score.weight)


ALONE: dict[str, Any] = {"epochs": 3, "fusion_epochs": 2, "patience": None}
SOON_ALONE: dict[str, Any] = {"epochs": 2, "fusion_epochs": 1, "patience": None}


@pytest.mark.parametrize(
    "changes", [{}, {"image_tower": {"lr_multiplier": 0.0}, "augmentation": {}}], ids=["all", "frozen-views"]
)
def test_the_fusion_may_learn_alone_from_the_best_towers(
    prepared: Prepared, tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(prepared, tmp_path, features=kept_in(tmp_path / "kept"), **ALONE, **changes)
    states = [copy.deepcopy(made.model.state_dict())]
    before_validation(monkeypatch, lambda: states.append(copy.deepcopy(made.model.state_dict())))
    ranks_on_val(monkeypatch, 3.0, 1.0, 2.0)
    position = made.run()
    assert [row["itm"] > 0 and row["alignment"] > 0 for row in position.history] == [False] * 3 + [True] * 2
    assert [row["val_mean_log_rank"] for row in position.history] == [3.0, 1.0, 2.0, 1.0, 1.0]
    assert (position.best_epoch, position.epoch) == (2, 5)
    for name, tensor in made.model.state_dict().items():
        fusion = name.startswith("fusion.")
        assert torch.equal(states[0][name], states[3][name]) or not fusion, name
        assert torch.equal(states[2][name], tensor) is not fusion, name


def test_a_fusion_that_learns_alone_sees_neither_dropout_nor_views(prepared: Prepared, tmp_path: Path) -> None:
    """So an image's tokens are the same in each of its epochs, and those that it has afterwards."""
    made = trainer(prepared, tmp_path, **ALONE, augmentation={})
    losses, seen = made.step.losses, []

    def watching(encoded: Any, batch: Any) -> Any:
        if batch.epoch >= 3:
            seen.append(dict(zip(batch.image_ids, encoded.images.grid, strict=True)))
        return losses(encoded, batch)

    made.step.losses = watching  # type: ignore[method-assign]
    made.run()
    image = min(seen[0])
    plain = made.model.eval().encode_images(
        torch.from_numpy(prepared.split("train").pixels(np.flatnonzero(prepared.split("train").image_ids == image)))
    )
    grids = [step[image] for step in seen if image in step]
    assert len(grids) >= 2
    for grid in grids:
        torch.testing.assert_close(grid, plain.grid[0])


def test_patience_leads_to_the_fusion(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: dict[str, Any] = {**ALONE, "epochs": 9, "patience": 1}
    made, steps = trainer(prepared, tmp_path, **changes), []
    ranks_on_val(monkeypatch, 1.0, 2.0)
    monkeypatch.setattr(made, "report", lambda values, step: steps.append((step, values.get("learning_rate"))))
    history = made.run().history
    assert [row["epoch"] for row in history] == [1, 2, 10, 11]
    assert history[-1]["learning_rate"] < 0.01 * history[-2]["learning_rate"]
    whole = trainer(prepared, tmp_path / "whole", **{**changes, "epochs": 2})
    ranks_on_val(monkeypatch, 1.0, 1.0)
    assert [row["learning_rate"] for row in whole.run().history[2:]] == [row["learning_rate"] for row in history[2:]]


def test_a_training_of_the_fusion_alone_resumes_to_the_bit(
    prepared: Prepared, tmp_path: Path, whole: Callable[..., Whole]
) -> None:
    """Its epochs begin behind step 12."""
    expected = whole(keeps=True, **ALONE)
    make = partial(
        trainer, prepared, tmp_path / "broken", features=kept_in(tmp_path / "kept"), checkpoint_every=2, **ALONE
    )
    resumed = interrupted(make, (10, 11, 12, 14, 17))
    assert resumed.run() == expected.position
    assert same_weights(resumed.model, expected)


def test_a_training_that_ends_between_its_files_resumes_to_the_bit(
    prepared: Prepared, tmp_path: Path, whole: Callable[..., Whole]
) -> None:
    """As on a full disk: of an epoch the best weights may be there, where it stands is not."""

    def full(save: Callable[[Any], None], epoch: int, state: dict[str, Any]) -> None:
        if state["position"]["epoch"] == epoch:
            raise DiptychError("full")
        save(state)

    for epoch in (1, 3, 4, 5):
        broken = trainer(prepared, tmp_path, **ALONE)
        broken.checkpoints.save = partial(full, broken.checkpoints.save, epoch)  # type: ignore[method-assign]
        with pytest.raises(DiptychError, match="full"):
            broken.run()
    resumed = trainer(prepared, tmp_path, **ALONE)
    expected = whole(**ALONE)
    assert resumed.run() == expected.position
    assert same_weights(resumed.model, expected)


def test_what_an_earlier_phase_used_makes_room(prepared: Prepared, tmp_path: Path) -> None:
    """Else a training that goes on in the last phase would find room where the whole one did not."""
    changes: dict[str, Any] = {"epochs": 2, "fusion_epochs": 1, "image_tower": {"frozen_epochs": 1}}
    every = kept_in(tmp_path / "every")
    trainer(prepared, tmp_path / "1", features=every, **changes).run()
    small = kept_in(tmp_path / "small")
    small.files.limit = sum(path.stat().st_size for path in (tmp_path / "every").iterdir()) - 1
    whole = trainer(prepared, tmp_path / "2", features=small, **changes)
    whole.run()
    assert isinstance(whole.val_inputs.images, StoredImages)
    assert isinstance(whole.val_inputs.texts, StoredTexts)
    assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) <= small.files.limit


def test_a_finished_training_embeds_as_when_it_ended(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From kept features, though patience ended it before the epoch that would have released the tower."""
    changes: dict[str, Any] = {"epochs": 4, "image_tower": {"frozen_epochs": 3}, "patience": 1}
    entered = []
    for _ in range(2):
        made = trainer(prepared, tmp_path, features=kept_in(tmp_path / "kept"), **changes)
        ranks_on_val(monkeypatch, 1.0, 1.0)
        assert len(made.run().history) == 2
        entered.append(made.val_inputs.images)
    assert all(isinstance(images, StoredImages) for images in entered)


def test_a_fusion_that_learns_alone_learns_the_same_in_chunks(prepared: Prepared, tmp_path: Path) -> None:
    changes: dict[str, Any] = {
        "epochs": 1,
        "fusion_epochs": 1,
        "patience": None,
        "image_tower": {"lr_multiplier": 0.0},
        "text_tower": {"lr_multiplier": 0.0},
    }
    whole, chunks = trainer(prepared, tmp_path / "1", **changes), trainer(prepared, tmp_path / "2", **changes)
    chunks.backward.chunk_size = 2
    for made in (whole, chunks):
        made.run()
    for name, tensor in whole.model.state_dict().items():
        torch.testing.assert_close(chunks.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_tower_is_released_after_its_frozen_epochs(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = trainer(prepared, tmp_path, epochs=2, image_tower={"frozen_epochs": 1})
    first = next(made.model.image_tower.backbone.parameters())
    seen = [first.detach().clone()]
    before_validation(monkeypatch, lambda: seen.append(first.detach().clone()))
    made.run()
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[1], seen[2])


def test_a_training_with_a_release_resumes_to_the_bit(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: dict[str, Any] = {"epochs": 3, "text_tower": {"frozen_epochs": 1}}
    whole = trainer(prepared, tmp_path / "whole", **changes)
    expected = whole.run()
    broken = trainer(prepared, tmp_path / "broken", **changes)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        before_validation(patch, Mock(side_effect=[None, None, KeyboardInterrupt]))
        broken.run()
    resumed = trainer(prepared, tmp_path / "broken", **changes)
    assert resumed.run() == expected
    assert same_weights(resumed.model, whole.model)


FROZEN: dict[str, Any] = {"image_tower": {"lr_multiplier": 0.0}, "text_tower": {"frozen_epochs": 1}}
TOP_LAYERS: dict[str, Any] = {"image_tower": {"top_layers": 1, "frozen_epochs": 1}, "text_tower": {"top_layers": 1}}
MIRRORS = {"crop_scale": 1.0, "flip": 0.5, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
MIRRORED: dict[str, Any] = TOP_LAYERS | {"augmentation": MIRRORS}
STAYS = {"frozen": FROZEN, "top-layers": TOP_LAYERS, "top-layers-mirrored": MIRRORED}
KEPT = pytest.mark.parametrize("stays", STAYS.values(), ids=STAYS)
KEPT_AND_ALONE = pytest.mark.parametrize(
    "stays", [*STAYS.values(), MIRRORED | SOON_ALONE], ids=[*STAYS, "fusion-alone"]
)


def kept_in(folder: Path) -> FeatureCache:
    return FeatureCache(folder, limit_gib=1.0, device=torch.device("cpu"), precision="no")


def recomputed(*_: object) -> None:
    pytest.fail("features that are kept were computed again")


@KEPT_AND_ALONE
def test_kept_features_train_to_the_same_bits_whether_computed_now_or_found(
    prepared: Prepared,
    tmp_path: Path,
    stays: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[..., Whole],
) -> None:
    cold = whole(keeps=True, **stays)
    monkeypatch.setattr(FeatureFiles, "write", recomputed)
    warm = trainer(prepared, tmp_path, features=kept_in(cold.kept), **stays)
    assert warm.run().history == cold.position.history
    assert same_weights(warm.model, cold)


@KEPT
def test_kept_features_train_to_about_the_weights_of_features_that_are_not_kept(
    prepared: Prepared, tmp_path: Path, stays: dict[str, Any]
) -> None:
    """Half precision is all that differs; a small rate, as Adam's first steps follow the signs of tiny gradients."""
    changes = stays | {"objectives": {"itm": 0.0}, "learning_rate": 1e-4}
    kept = trainer(prepared, tmp_path / "1", features=kept_in(tmp_path / "kept"), keep_features="always", **changes)
    never = trainer(prepared, tmp_path / "2", features=kept_in(tmp_path / "none"), keep_features="never", **changes)
    losses = [[row["loss"] for row in made.run().history] for made in (kept, never)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert not (tmp_path / "none").exists()
    assert not same_weights(kept.model, never.model)
    weights = never.model.state_dict()
    for name, weight in kept.model.state_dict().items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-2, atol=5e-4, msg=f"{name} {{}}".format)


@KEPT_AND_ALONE
def test_a_training_from_kept_features_resumes_to_the_bit(
    prepared: Prepared,
    tmp_path: Path,
    stays: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    whole: Callable[..., Whole],
) -> None:
    expected = whole(keeps=True, **stays)
    monkeypatch.setattr(FeatureFiles, "write", recomputed)
    resumed = interrupted(
        lambda: trainer(prepared, tmp_path, features=kept_in(expected.kept), checkpoint_every=2, **stays),
        (2, 6, 10)[: expected.position.epoch],
    )
    assert resumed.run() == expected.position
    assert same_weights(resumed.model, expected)


def test_a_fusion_alone_sees_what_its_towers_make_of_what_lay_below_them(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels and token ids are seen once, but for the one or two with which it is tried whether a tower comes apart."""
    made = trainer(prepared, tmp_path, features=kept_in(tmp_path / "kept"), **MIRRORED, **ALONE)
    seen: list[int] = []

    def watched(features: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def counted(*arguments: torch.Tensor) -> torch.Tensor:
            seen.append(len(arguments[0]))
            return features(*arguments)

        return counted

    for tower in (made.model.image_tower, made.model.text_tower):
        monkeypatch.setattr(tower, "features", watched(tower.features))
    made.inputs.enter(made.model, 1)
    before = len(seen)
    made.inputs.enter(made.model, 3)
    assert max(seen[:before]) > 2
    assert max(seen[before:]) <= 2
    for tower, inputs in (
        (made.model.image_tower, made.train_inputs.images),
        (made.model.text_tower, made.train_inputs.texts),
    ):
        assert tower.upper is None
        assert isinstance(inputs, (StoredImages, StoredTexts))
        kept = inputs(np.arange(3))
        assert (kept[0] if isinstance(kept, tuple) else kept).shape[-len(tower.feature_shape) :] == tower.feature_shape


def test_what_lies_below_the_top_layers_stays_to_the_bit(prepared: Prepared, tmp_path: Path) -> None:
    changes = TOP_LAYERS | {"image_tower": {"top_layers": 1}}
    made = trainer(prepared, tmp_path, features=kept_in(tmp_path / "kept"), **changes)
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    made.run()
    changed = {name for name, tensor in made.model.state_dict().items() if not torch.equal(tensor, before[name])}
    below = ("embeddings", "embedder", "encoder.layer.0.", "encoder.stages.0.")
    assert not any(part in name for name in changed for part in below)
    assert any("backbone.encoder.layer.1." in name for name in changed)
    assert any("backbone.encoder.stages.1." in name for name in changed)


def test_features_of_both_sides_are_too_many_or_kept_both(prepared: Prepared, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"image_tower": {"top_layers": 1}, "augmentation": MIRRORS}
    both = trainer(prepared, tmp_path / "1", features=kept_in(tmp_path / "kept"), **changes)
    both.run()
    images = sum(path.stat().st_size for path in (tmp_path / "kept").iterdir())
    small = kept_in(tmp_path / "small")
    small.files.limit = int(0.6 * images)
    made = trainer(prepared, tmp_path / "2", features=small, **changes)
    losses = [[row["loss"] for row in some.run().history] for some in (both, made)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert made.inputs.train(0).images(np.arange(1)).dtype == torch.uint8


def test_of_images_that_vary_no_features_are_kept(prepared: Prepared, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"image_tower": {"lr_multiplier": 0.0}, "epochs": 1, "augmentation": {"flip": 1.0}}
    trainer(prepared, tmp_path, features=kept_in(tmp_path / "kept"), **changes).run()
    assert not (tmp_path / "kept").exists()


def test_an_augmented_training_repeats_itself_and_differs_from_a_plain_one(prepared: Prepared, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"epochs": 1, "augmentation": {"crop_scale": 0.5}, "objectives": {"simclr_image": 1.0}}
    one, other = (trainer(prepared, tmp_path / name, **changes) for name in ("1", "2"))
    plain = trainer(prepared, tmp_path / "3", **(changes | {"augmentation": None}))
    histories = [made.run().history for made in (one, other, plain)]
    assert histories[0] == histories[1] != histories[2]
    assert same_weights(one.model, other.model)
    assert histories[0][0]["simclr_image"] > 0


class TooLarge:
    """In the place of the model's `encode_texts`: memory ends, behind the image tower, above so many captions."""

    def __init__(self, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = most
        self.held: list[weakref.ref[torch.Tensor]] = []
        encode_texts = DualEncoder.encode_texts

        def encode(model: DualEncoder, texts: torch.Tensor, *rest: Any) -> Any:
            self.attempt(model, len(texts))
            return encode_texts(model, texts, *rest)

        monkeypatch.setattr(DualEncoder, "encode_texts", encode)

    def attempt(self, model: DualEncoder, captions: int) -> None:
        assert all(reference() is None for reference in self.held), "a failed attempt still holds its memory"
        if model.training and captions > self.most:
            activations = torch.zeros(3)
            self.held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_where_memory_does_not_suffice_it_trains_as_with_small_chunks_from_the_start(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To the bit, dropout and the statistics of batch norms included."""
    expected = trainer(prepared, tmp_path / "small", chunk_size=2, epochs=1)
    history = expected.run().history
    too_large = TooLarge(5, monkeypatch)
    made = trainer(prepared, tmp_path / "large", epochs=1)
    assert made.run().history == history
    assert same_weights(made.model, expected.model)
    assert (made.backward.chunk_size, len(too_large.held)) == (2, 2)
    assert "Memory does not suffice for 4 images at once: going on with 2." in caplog.text


def test_a_chunk_that_was_found_small_enough_is_taken_up_on_resuming(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_large = TooLarge(5, monkeypatch)
    made = trainer(prepared, tmp_path, checkpoint_every=2, epochs=1)
    stop(made, after=3)
    with pytest.raises(KeyboardInterrupt):
        made.run()
    resumed = trainer(prepared, tmp_path, epochs=1)
    resumed.run()
    assert (resumed.backward.chunk_size, len(too_large.held)) == (2, 2)


def test_counting_operations_changes_nothing_of_the_training(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: None
) -> None:
    changes: dict[str, Any] = {"epochs": 1, "objectives": {"simclr_image": 0.1, "simclr_text": 0.1}}
    reported: dict[str, float] = {}
    counted = trainer(prepared, tmp_path / "1", report=lambda values, step: reported.update(values), **changes)
    history = counted.run().history
    assert reported["model_flops_utilization"] > 0
    measure_no_speed(monkeypatch)
    plain = trainer(prepared, tmp_path / "2", **changes)
    assert plain.run().history == history
    assert same_weights(plain.model, counted.model)


def test_where_memory_does_not_suffice_to_count_operations_training_goes_on(
    prepared: Prepared,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    counting: None,
) -> None:
    def full(step: Any) -> int:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("diptych.training.flops.count_flops", full)
    assert len(trainer(prepared, tmp_path, epochs=1).run().history) == 1
    assert caplog.text.count("does not suffice to count") == 1


@pytest.mark.parametrize("step", [2, 4])
def test_a_loss_that_is_not_a_number_is_never_saved(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """It is read one step late, but before a checkpoint (every second step) and before the end of the epoch."""
    made = trainer(prepared, tmp_path, checkpoint_every=2)
    backward = Backward.__call__

    def spoilt(self: Backward, batch: Any) -> Any:
        losses = backward(self, batch)
        return losses._replace(total=losses.total * float("nan")) if batch.step == step - 1 else losses

    monkeypatch.setattr(Backward, "__call__", spoilt)
    with pytest.raises(DiptychError, match=f"the loss is nan in epoch 1, step {step}"):
        made.run()
    state = made.checkpoints.load()
    assert (state and state["position"]["step"]) == (None if step == 2 else 2)


@pytest.mark.parametrize(
    ("wanted", "device", "epoch_steps", "compiled"),
    [
        ("auto", "cuda", 1500, True),
        ("auto", "cuda", 1499, False),
        ("auto", "cpu", 1500, False),
        ("always", "cpu", 1, True),
        ("never", "cuda", 1500, False),
    ],
)
def test_towers_are_compiled_for_trainings_that_are_long_enough(
    wanted: str, device: str, epoch_steps: int, compiled: bool
) -> None:
    settings = train_settings(compile=wanted, epochs=2)
    assert Compilation(make_model(), settings, torch.device(device), epoch_steps).active == compiled


def test_a_compiled_tower_comes_apart_where_its_top_layers_are_released(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda module, **settings: compile_module(module, backend="eager", **settings)
    )
    released: dict[str, Any] = {
        "image_tower": {"frozen_epochs": 1, "top_layers": 1},
        "text_tower": {"lr_multiplier": 0.0},
    }
    made = trainer(prepared, tmp_path, features=kept_in(tmp_path / "kept"), compile="always", epochs=2, **released)
    made.run()
    torch.compiler.reset()
    assert made.model.image_tower.upper
    # torch has no public name for it.
    assert not any(module._compiled_call_impl for module in made.model.modules())  # noqa: SLF001


@pytest.mark.parametrize(("compiles", "towers"), [("always", 2), ("auto", 0), ("never", 0)])
def test_on_a_cpu_towers_are_compiled_only_on_request(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiles: str, towers: int
) -> None:
    compiled: list[dict[str, Any]] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **settings: compiled.append(settings))
    trainer(prepared, tmp_path, compile=compiles, epochs=1).run()
    assert len(compiled) == towers


def test_too_few_images_are_an_error_before_training(tmp_path: Path) -> None:
    small = open_prepared(write_prepared(tmp_path / "p", train=1))
    with pytest.raises(DiptychError, match="1 image"):
        trainer(small, tmp_path)


@pytest.mark.parametrize("count", ["two", "four"])
def test_processes_learn_the_weights_of_one(count: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """With hard negatives, batch norms, kept features of a tower that is released and of a lower layer, and an uneven
    last batch; stopped in the middle and resumed; without dropout, which each process draws for itself."""
    folder, said = request.getfixturevalue(f"{count}_processes")
    (tmp_path / "p").symlink_to(folder / "p")
    first, *others = said("training")
    alone = trained(tmp_path, "alone", 1 + len(others))
    for other in others:
        assert all(torch.equal(first[name], tensor) for name, tensor in other.items())
    for name, tensor in alone.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-3, atol=3e-4, msg=f"{name} {{}}".format)
