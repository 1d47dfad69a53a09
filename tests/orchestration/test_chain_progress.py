"""The progress of the chain tells how much is done and about how long is left."""

import json
from collections.abc import Collection
from pathlib import Path

import pytest

from diptych.orchestration.chain_progress import SHARES, ChainProgress
from diptych.project.dvc import STAGES


class Run:
    """A run of the chain on a clock that only stages advance."""

    def __init__(self, path: Path, model: str = "diptych", changed: Collection[str] = STAGES) -> None:
        self.lines: list[str] = []
        self.now = 0.0
        self.progress = ChainProgress(path, model, STAGES, changed, self.lines.append, lambda: self.now)

    def stage(self, name: str, seconds: float, outcome: str = "ran") -> str:
        """Run a stage that takes `seconds`, and return the line before it."""

        def work() -> str:
            self.now += seconds
            return outcome

        assert self.progress.run(name, work) == outcome
        return self.lines[-1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "durations.json"


@pytest.fixture
def known(path: Path) -> Path:
    path.parent.mkdir()
    path.write_text(json.dumps({"diptych": dict.fromkeys(STAGES, 10.0) | {"train": 50.0}}))
    return path


def test_a_first_run_tells_the_time_left_once_a_stage_has_shown_how_fast_this_machine_is(path: Path) -> None:
    run = Run(path)

    assert run.stage("validate", 2 * SHARES["validate"]) == "validate (1 of 6): 0% of the stages' work is done"
    assert run.stage("preprocess", 2 * SHARES["preprocess"]) == (
        "preprocess (2 of 6): 5% of the stages' work is done, about 3 min 10 s left"
    )


def test_a_later_run_tells_it_at_once_from_what_the_stages_took(known: Path) -> None:
    run = Run(known)

    assert run.stage("validate", 10) == "validate (1 of 6): 0% of the stages' work is done, about 1 min 40 s left"
    assert run.stage("preprocess", 10) == "preprocess (2 of 6): 10% of the stages' work is done, about 1 min 30 s left"


def test_a_run_that_is_slower_than_the_last_one_expects_more(known: Path) -> None:
    run = Run(known)
    run.stage("validate", 30)

    assert run.stage("preprocess", 30).endswith("about 4 min 30 s left")


def test_a_stage_that_found_its_work_half_done_says_nothing_about_the_others(known: Path) -> None:
    run = Run(known)
    run.stage("validate", 1)

    assert run.stage("preprocess", 10).endswith("about 1 min 30 s left")


def test_what_another_model_took_says_nothing(known: Path) -> None:
    assert Run(known, "other").stage("validate", 1) == "validate (1 of 6): 0% of the stages' work is done"
    assert json.loads(known.read_text())["diptych"]["train"] == 50.0


def test_stages_before_the_first_that_has_changed_are_not_expected_to_run(known: Path) -> None:
    run = Run(known, changed={"evaluate"})

    assert run.stage("validate", 1, "reused") == "validate (1 of 6): 0% of the stages' work is done, about 10 s left"


def test_what_is_reused_is_no_part_of_the_work(known: Path) -> None:
    run = Run(known)
    for name in ("validate", "preprocess", "baselines"):
        run.stage(name, 1, "reused")

    assert run.stage("train", 50) == "train (4 of 6): 0% of the stages' work is done, about 1 min 10 s left"
    assert run.stage("controls", 10) == "controls (5 of 6): 71% of the stages' work is done, about 20 s left"


def test_the_durations_of_stages_that_ran_are_kept_for_the_next_run(known: Path) -> None:
    run = Run(known)
    run.stage("validate", 20)
    run.stage("preprocess", 1, "reused")

    kept = json.loads(known.read_text())["diptych"]
    assert (kept["validate"], kept["preprocess"]) == (20.0, 10.0)


@pytest.mark.parametrize(
    "stages",
    ["1", *(f'{{"validate": {seconds}}}' for seconds in ("-1", "Infinity", "5e-324", "1e308", "9" * 400, '"x"'))],
)
def test_durations_that_cannot_be_are_as_good_as_none(path: Path, stages: str) -> None:
    path.parent.mkdir()
    path.write_text(f'{{"diptych": {stages}}}')

    assert Run(path).stage("validate", 1) == "validate (1 of 6): 0% of the stages' work is done"


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\xff"])
def test_a_damaged_file_is_as_good_as_none(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content, encoding="latin-1")

    assert Run(path).stage("validate", 1) == "validate (1 of 6): 0% of the stages' work is done"
