"""Processes that train together: who starts them, and which rank counts."""

import os

import pytest

from diptych.errors import DiptychError
from diptych.progress import is_first_process
from diptych.training.launching import forget_foreign_rank, launch, process_count


def test_a_launcher_that_is_missing_is_named(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(DiptychError, match=r"train\.launch names no-such-launcher"):
        launch(["no-such-launcher", "--nproc-per-node=2"])


def test_a_launcher_that_starts_one_process_alone_does_not_start_itself_forever(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("DIPTYCH_LAUNCHED", "1")
    with pytest.raises(DiptychError, match="`env --x` starts one process alone"):
        launch(["env", "--x"])


def test_a_process_that_has_a_rank_is_not_launched_again(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    launch(["no-such-launcher"])


def test_a_rank_comes_from_a_launcher_and_not_from_a_cluster(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name, value in {"RANK": "3", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    assert (is_first_process(), process_count()) == (True, 1)

    monkeypatch.setenv("LOCAL_RANK", "3")
    assert (is_first_process(), process_count()) == (False, 8)


@pytest.mark.parametrize("launched", [False, True])
def test_the_rank_of_another_job_is_forgotten(monkeypatch, launched):
    names = ["RANK", "WORLD_SIZE", "MASTER_ADDR", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "PMI_SIZE"]
    for name in [*names, *(["LOCAL_RANK"] if launched else [])]:
        monkeypatch.setenv(name, "2")
    if not launched:
        monkeypatch.delenv("LOCAL_RANK", raising=False)

    forget_foreign_rank()

    assert [name in os.environ for name in names] == [launched] * len(names)
