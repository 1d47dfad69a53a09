"""Distributions by their quantiles, beside the same computed from all values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from diptych.drift.quantiles import Sketch, critical_distance, ks_distance


def draw(kind, seed, size, shift=0.0):
    generator = np.random.default_rng(seed)
    if kind == "smooth":
        return generator.normal(shift, 1, size)
    if kind == "whole numbers":
        return generator.poisson(8 + 3 * shift, size).astype(float)
    return np.where(generator.random(size) < 0.7 - 0.2 * shift, 640.0, 480.0)


@settings(deadline=None)
@given(
    kind=st.sampled_from(["smooth", "whole numbers", "two values"]),
    seed=st.integers(0, 100),
    sizes=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    shift=st.floats(0, 2),
)
def test_the_distance_of_sketches_is_that_of_all_values(kind, seed, sizes, shift):
    first, second = draw(kind, seed, sizes[0]), draw(kind, seed + 1, sizes[1], shift)

    assert ks_distance(Sketch.of(first), Sketch.of(second)) == pytest.approx(
        ks_2samp(first, second).statistic, abs=0.02
    )


def test_values_that_are_all_the_same_are_no_or_the_whole_distance_apart():
    same, other = Sketch.of([96.0] * 50), Sketch.of([128.0] * 3)

    assert ks_distance(same, same) == 0
    assert ks_distance(same, other) == ks_distance(other, same) == 1


def test_nothing_is_at_no_distance_and_explained_by_chance():
    assert ks_distance(Sketch.of([]), Sketch.of([1.0])) == 0
    assert critical_distance(0, 10, 0.01) == np.inf


@pytest.mark.parametrize("sizes", [(20, 2000), (100, 100), (500, 2000)])
def test_chance_exceeds_the_critical_distance_as_often_as_it_says(sizes):
    critical, exceeded = critical_distance(sizes[0], sizes[1], 0.05), 0
    for seed in range(600):
        generator = np.random.default_rng(seed)
        exceeded += (
            ks_2samp(generator.random(sizes[0]), generator.random(sizes[1]), method="asymp").statistic > critical
        )

    assert exceeded / 600 < 0.07


def test_a_sketch_comes_back_from_json():
    sketch = Sketch.of(np.arange(1000.0))

    assert Sketch.from_json(sketch.to_json()) == sketch
    assert sketch.median == pytest.approx(500, abs=1)
    with pytest.raises(ValueError, match="quantiles"):
        Sketch.from_json({"count": 3, "quantiles": [1, 2]})
