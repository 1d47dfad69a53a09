"""Draws: from the seed, the purpose and the place alone."""

from __future__ import annotations

from diptych.training.draws import Purpose, generator


def test_the_same_place_draws_the_same() -> None:
    generator(7, Purpose.ORDER, 3).random(5)
    assert generator(7, Purpose.ORDER, 3).random(5).tolist() == generator(7, Purpose.ORDER, 3).random(5).tolist()


def test_seeds_purposes_and_places_draw_by_themselves() -> None:
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2**40), (2**32, 0)]
    drawn = {
        float(generator(seed, purpose, *place).random())
        for seed in (0, 1, 2**31 - 1)
        for purpose in Purpose
        for place in places
    }
    assert len(drawn) == 3 * len(Purpose) * len(places)


def test_purposes_keep_their_numbers() -> None:
    """Other numbers would draw other batches of the same seed."""
    assert {purpose.name: purpose.value for purpose in Purpose} == {"ORDER": 0, "CAPTIONS": 1, "PAIRS": 2, "VIEW": 3}
