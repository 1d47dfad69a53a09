"""Measuring advice: which alternatives are tried in the time, and when one is taken in place of the proposal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from advised import proposed

from diptych.advice import measuring
from diptych.advice.measuring import ENOUGH_FOLDS, FOLDS, PROPOSAL, Measured, Trial, alternatives, best_of, measure
from diptych.advice.recipe import Choice, Proposal
from diptych.config import Params
from diptych.data.folds import Fold
from diptych.errors import DiptychError
from diptych.project.workspace import Workspace
from diptych.retrieval.ranking import Outcomes, Ranks
from diptych.retrieval.uncertainty import gain_over_folds

CPU = torch.device("cpu")
IMAGES = 200
NOWHERE = Workspace(Path("nowhere"))
FROZEN, SLOWER, LESS, HALF = (
    "towers stay frozen",
    "towers learn at half the rate",
    "one layer less learns",
    "half the channel dropout",
)


class Trainings:
    """Trainings that take a minute, or `seconds`, and rank half of the queries first, or `shares`.

    Attributes:
        done: the trainings, by the keys that differ from the proposal's, and their folds.
        seconds: seconds of a recipe's trainings, by its name.
        shares: shares of the queries that a recipe ranks first, by its name.
        failing: names of recipes that cannot be trained.
    """

    def __init__(self, proposal: Proposal, clock: SimpleNamespace) -> None:
        self.done: list[tuple[str, int]] = []
        self.seconds: dict[str, float] = {}
        self.shares: dict[str, float] = {}
        self.failing: set[str] = set()
        self.folds = [SimpleNamespace(test=SimpleNamespace(image_of_caption=np.arange(IMAGES)))] * FOLDS
        self._clock = clock
        self._names = {
            measuring._towers_alone(proposal.with_choices(*own).params).model_dump_json(): name  # noqa: SLF001
            for name, own in {PROPOSAL: (), **alternatives(proposal.params)}.items()
        }

    def store_features(self, _: Params) -> None:
        """Take no time."""

    def ranks(self, params: Params, _: Fold) -> dict[str, Ranks]:
        """Train, and return the same ranks for every fold but for a little luck."""
        assert params.train.objectives.itm == 0
        name = self._names[params.model_dump_json()]
        if name in self.failing:
            raise DiptychError("the loss is nan")
        fold = sum(done == name for done, _ in self.done)
        self.done.append((name, fold))
        self._clock.now += self.seconds.get(name, 60.0)
        hit = np.arange(IMAGES) < IMAGES * self.shares.get(name, 0.5) + fold % 2
        rank = np.where(hit, 1, 20)
        outcomes = Outcomes(rank, hit.astype(float), hit.astype(float), np.zeros(IMAGES, bool))
        return {"qb_norm": Ranks(outcomes, outcomes)}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only trainings move."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("diptych.advice.measuring.time.monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def proposal() -> Proposal:
    return proposed()


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace, proposal: Proposal) -> Trainings:
    made = Trainings(proposal, clock)

    @contextmanager
    def prepared(*_: object) -> Iterator[Any]:
        yield SimpleNamespace(rows_of=lambda roles: range(4000 if roles == ["train"] else 1000))

    def validation(_: object, count: int, *, params: Params, **__: object) -> Trainings:
        assert (count, params.data.splits.held_out) == (FOLDS, 0.2)
        return made

    monkeypatch.setattr(measuring, "_prepared", prepared)
    monkeypatch.setattr(measuring, "CrossValidation", validation)
    return made


def by_name(measured: list[Measured]) -> dict[str, Measured]:
    return {one.name: one for one in measured}


def changes(params: Params) -> dict[str, dict[str, Any]]:
    return {name: {one.key: one.value for one in own} for name, own in alternatives(params).items()}


def test_every_alternative_is_a_valid_recipe(proposal: Proposal) -> None:
    for own in alternatives(proposal.params).values():
        assert proposal.with_choices(*own).params != proposal.params


def test_released_towers_are_tried_frozen_slower_less_deep_and_longer(proposal: Proposal) -> None:
    made = changes(proposal.params)
    assert {FROZEN, SLOWER, LESS, HALF, "twice as many epochs in which towers learn"} <= set(made)
    train = proposal.params.train
    released = train.epochs - train.image_tower.frozen_epochs
    assert made[FROZEN]["train.epochs"] == train.image_tower.frozen_epochs
    assert made["twice as many epochs in which towers learn"] == {"train.epochs": train.epochs + released}


def test_towers_from_scratch_are_tried_with_smoothing_with_dropout_and_longer() -> None:
    assert list(changes(proposed(towers=[]).params)) == [
        "smoothed targets",
        "channel dropout",
        "twice as many epochs in which towers learn",
    ]


def test_a_clearly_better_alternative_is_the_best(proposal: Proposal, trainings: Trainings) -> None:
    trainings.shares |= {HALF: 0.7, SLOWER: 0.6}
    measured = measure(NOWHERE, proposal, 100, CPU)
    best = best_of(measured)
    assert best.name == HALF
    assert best.gain is not None
    assert best.gain.rsum == pytest.approx(6 * 20)
    assert [len(one.trials) for one in measured] == [FOLDS] * len(measured)


@pytest.mark.parametrize("folds", [1, ENOUGH_FOLDS - 1])
def test_few_folds_replace_no_proposal(proposal: Proposal, trainings: Trainings, folds: int) -> None:
    trainings.shares[HALF] = 0.7
    measured = measure(NOWHERE, proposal, folds * (1 + len(alternatives(proposal.params))), CPU)
    assert len(by_name(measured)[HALF].trials) == folds
    assert by_name(measured)[HALF].gain is not None
    assert best_of(measured).name == PROPOSAL


def test_an_interval_over_some_folds_is_that_of_as_many_of_all(proposal: Proposal, trainings: Trainings) -> None:
    trainings.shares[HALF] = 1.0
    measured = measure(NOWHERE, proposal, ENOUGH_FOLDS * (1 + len(alternatives(proposal.params))), CPU)
    recipe = by_name(measured)[HALF]
    differences = [own.rsum - other.rsum for own, other in zip(recipe.trials, measured[0].trials, strict=True)]
    assert len(differences) == ENOUGH_FOLDS < FOLDS
    assert recipe.gain == gain_over_folds(np.array([differences]), folds=FOLDS)


def test_a_worse_alternative_is_dropped_after_a_fold(proposal: Proposal, trainings: Trainings) -> None:
    trainings.shares[LESS] = 0.3
    folds = {one.name: len(one.trials) for one in measure(NOWHERE, proposal, 100, CPU)}
    assert folds.pop(LESS) == 1
    assert set(folds.values()) == {FOLDS}
    assert trainings.done[:2] == [(PROPOSAL, 0), (FROZEN, 0)]


def test_no_training_begins_that_would_not_end_in_time(proposal: Proposal, trainings: Trainings) -> None:
    measured = measure(NOWHERE, proposal, 2, CPU)
    assert trainings.done == [(PROPOSAL, 0), (FROZEN, 0)]
    assert not any(one.trials for one in measured[2:])
    assert best_of(measured).name == PROPOSAL


def test_a_quick_alternative_gets_no_fold_that_the_proposal_has_not(proposal: Proposal, trainings: Trainings) -> None:
    trainings.seconds = dict.fromkeys(alternatives(proposal.params), 1.0)
    measured = measure(NOWHERE, proposal, (2 * 60 + len(trainings.seconds) - 0.5) / 60, CPU)
    assert {len(one.trials) for one in measured} == {1}


def test_the_proposal_is_measured_however_little_time_there_is(proposal: Proposal, trainings: Trainings) -> None:
    first, *others = measure(NOWHERE, proposal, 0.1, CPU)
    assert (first.name, len(first.trials), first.gain) == (PROPOSAL, 1, None)
    assert first.trials[0].seconds == 60
    assert not any(one.trials for one in others)


def test_too_few_images_to_choose_on_are_named(proposal: Proposal) -> None:
    prepared: Any = SimpleNamespace(rows_of=lambda roles: range(17 if roles == ["train"] else 2))
    with pytest.raises(DiptychError, match=r"2 image\(s\) are there to choose on"):
        measuring._for_folds(proposal.params, prepared)  # noqa: SLF001


def test_an_alternative_that_fails_costs_the_others_nothing(proposal: Proposal, trainings: Trainings) -> None:
    trainings.failing = {FROZEN}
    measured = by_name(measure(NOWHERE, proposal, 100, CPU))
    assert measured[FROZEN].failure == "the loss is nan"
    assert len(measured[HALF].trials) == FOLDS


def test_a_proposal_that_fails_is_an_error(proposal: Proposal, trainings: Trainings) -> None:
    trainings.failing = {PROPOSAL}
    with pytest.raises(DiptychError, match="nan"):
        measure(NOWHERE, proposal, 100, CPU)


def test_without_the_images_on_the_disk_nothing_is_measured(proposal: Proposal, tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match=r"data is not on this disk, where a measurement reads it: `dvc pull data"):
        measure(Workspace(tmp_path), proposal, 1.0, CPU)
    assert not list(tmp_path.iterdir())


def test_what_was_measured_is_written_as_plain_values() -> None:
    outcomes = Outcomes(np.array([1]), np.ones(1), np.ones(1), np.zeros(1, bool))
    trial = Trial(Ranks(outcomes, outcomes), np.arange(1), 60.0)
    assert Measured("shorter", (Choice("train.epochs", 3, "why"),), (trial,)).to_json() == {
        "name": "shorter",
        "changes": {"train.epochs": 3},
        "rsum": [600.0],
        "seconds": [60.0],
        "gain": None,
        "failure": "",
    }


@pytest.mark.slow
def test_a_real_dataset_is_measured_apart_from_the_projects_results(
    make_dataset: Callable[..., Path], photo: Callable[..., bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interrupting import forget_accelerator, measure_no_speed
    from tiny import COLOURS

    images = [("train" if index % 5 else "val", photo(index)) for index in range(50)]
    captions = {index + 1: [f"a {COLOURS[index % 6]} thing number {index}"] for index in range(50)}
    make_dataset(images, captions)
    measure_no_speed(monkeypatch)
    monkeypatch.chdir(tmp_path)
    small = (
        Choice("preprocess.image_size", 32, ""),
        Choice("train.epochs", 1, ""),
        Choice("train.batch_size", 8, ""),
        Choice("data.splits", {"train": "train", "val": None, "test": "val", "held_out": 0.2}, ""),
    )
    proposal = proposed(towers=[]).with_choices(*small)
    first, *others = measure(Workspace(tmp_path), proposal, 0.01, CPU)
    assert 0 < first.trials[0].rsum <= 600
    assert not any(one.trials for one in others)
    assert not any((tmp_path / ".diptych" / "advice").iterdir())
    assert not (tmp_path / "artifacts").exists()
    assert not (tmp_path / "reports").exists()
    forget_accelerator()
