"""Random numbers: met again, and as if nothing had been."""

from __future__ import annotations

import torch

from diptych.training.random_state import random_state, replayed, set_random_state

CPU = torch.device("cpu")


def test_a_state_that_is_set_draws_the_same_again() -> None:
    state = random_state(CPU)
    drawn = torch.rand(3)
    set_random_state(state, CPU)
    assert torch.equal(torch.rand(3), drawn)


def test_a_state_within_a_larger_tensor_can_be_set() -> None:
    state = random_state(CPU)
    rows = torch.cat([torch.zeros(3, dtype=torch.uint8), state])
    drawn = torch.rand(3)
    set_random_state(rows[3:], CPU)
    assert torch.equal(torch.rand(3), drawn)


def test_a_replay_meets_the_same_numbers_and_leaves_those_to_come_alone() -> None:
    state = random_state(CPU)
    drawn, now = torch.rand(3), random_state(CPU)
    with replayed(state, CPU):
        assert torch.equal(torch.rand(3), drawn)
        torch.rand(100)
    assert torch.equal(random_state(CPU), now)
