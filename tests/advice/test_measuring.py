"""Measuring advice: which alternatives are tried in the time, and when one is taken in place of the proposal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from advised import FACTS, PRESETS, TOWERS

from diptych.advice import measuring
from diptych.advice.measuring import PROPOSAL, Measured, alternatives, measure
from diptych.advice.recipe import Choice, Proposal, propose
from diptych.config import Params
from diptych.project.workspace import Workspace
from diptych.retrieval.ranking import Outcomes, Ranks

CPU = torch.device("cpu")
IMAGES = 200


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that only trainings move."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("diptych.advice.measuring.time.monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, clock: SimpleNamespace) -> list[tuple[str, int]]:
    """The trainings, by name and fold. Each takes a minute, and ranks a share of the queries first."""
    done: list[tuple[str, int]] = []

    def train(_: object, params: Params, fold: int, name: str) -> Any:
        assert params.train.objectives.itm == 0
        done.append((name, fold))
        clock.now += 60
        hit = np.random.default_rng(0).random(IMAGES) < SHARES.get(name, 0.5)
        rank = np.where(hit, 1, 20)
        outcomes = Outcomes(rank, hit.astype(float), hit.astype(float), np.zeros(IMAGES, bool))
        return measuring.Trial(Ranks(outcomes, outcomes), np.arange(IMAGES), 60.0)

    monkeypatch.setattr(measuring, "_train", train)
    monkeypatch.setattr(measuring, "_prepare", lambda *_: None)
    monkeypatch.setattr(measuring, "CrossValidation", lambda *_, **__: None)
    return done


SHARES = {"half the channel dropout": 0.7, "one layer less learns": 0.3}
"""Shares of the queries that trainings rank first; others half of them."""


@pytest.fixture
def proposal() -> Proposal:
    return propose(FACTS, TOWERS, PRESETS)


def changes(params: Params) -> dict[str, dict[str, Any]]:
    return {name: {one.key: one.value for one in own} for name, own in alternatives(params).items()}


def test_every_alternative_is_a_valid_recipe(proposal: Proposal) -> None:
    for own in alternatives(proposal.params).values():
        changed = proposal.with_choices(*own).params
        assert changed != proposal.params


def test_released_towers_are_tried_frozen_slower_shorter_and_less_deep(proposal: Proposal) -> None:
    made = changes(proposal.params)
    assert list(made) == [
        "towers stay frozen",
        "half as many epochs after the release",
        "towers learn at a third of the rate",
        "one layer less learns",
        "half the channel dropout",
    ]
    assert made["half as many epochs after the release"] == {"train.epochs": 10}
    assert made["half the channel dropout"] == {
        "model.image_tower.channel_dropout": 0.25,
        "model.text_tower.channel_dropout": 0.1,
    }


def test_towers_from_scratch_are_tried_shorter_and_with_dropout() -> None:
    assert list(changes(propose(FACTS, [], PRESETS).params)) == ["half as many epochs", "channel dropout"]


def test_a_clearly_better_alternative_is_the_best(proposal: Proposal, trained: list[tuple[str, int]]) -> None:
    best, measured = measure(Workspace(Path("nowhere")), proposal, 6, CPU)
    assert best.name == "half the channel dropout"
    assert best.gain is not None
    assert best.gain.low > 0
    assert {one.folds for one in measured} == {1}
    assert len(trained) == 6


def test_a_worse_alternative_is_dropped_after_a_fold(proposal: Proposal, trained: list[tuple[str, int]]) -> None:
    _, measured = measure(Workspace(Path("nowhere")), proposal, 100, CPU)
    folds = {one.name: one.folds for one in measured}
    assert folds["one layer less learns"] == 1
    assert folds[PROPOSAL] == folds["towers stay frozen"] == 5
    assert trained[:6] == [(name, 0) for name in folds]


def test_no_training_begins_that_would_not_end_in_time(proposal: Proposal, trained: list[tuple[str, int]]) -> None:
    best, measured = measure(Workspace(Path("nowhere")), proposal, 2.5, CPU)
    assert trained == [(PROPOSAL, 0), ("towers stay frozen", 0)]
    assert best.name == PROPOSAL
    assert len(measured) == 2


def test_the_proposal_is_measured_however_little_time_there_is(
    proposal: Proposal, trained: list[tuple[str, int]]
) -> None:
    best, [only] = measure(Workspace(Path("nowhere")), proposal, 0.1, CPU)
    assert best == only
    assert (only.gain, only.folds, only.seconds) == (None, 1, 60.0)


def test_what_was_measured_is_written_as_plain_values() -> None:
    one = Measured("shorter", (Choice("train.epochs", 3, "why"),), 2, 300.0, None, 60.0)
    assert one.to_json() == {
        "name": "shorter",
        "changes": {"train.epochs": 3},
        "folds": 2,
        "rsum": 300.0,
        "gain": None,
        "seconds": 60.0,
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
        Choice("data.splits", {"train": "train", "val": "val", "test": "test"}, ""),
        Choice("preprocess.image_size", 32, ""),
        Choice("train.epochs", 1, ""),
        Choice("train.batch_size", 8, ""),
        Choice("data.splits", {"train": "train", "val": None, "test": "val", "held_out": 0.2}, ""),
    )
    proposal = propose(FACTS, [], PRESETS).with_choices(*small)
    best, measured = measure(Workspace(tmp_path), proposal, 0.01, CPU)
    assert [one.name for one in measured] == [PROPOSAL]
    assert 0 < best.rsum <= 600
    assert not (tmp_path / "artifacts").exists()
    assert not (tmp_path / "reports").exists()
    forget_accelerator()
