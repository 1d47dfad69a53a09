"""The use of the machine is sampled now and then, by MLflow's names."""

from __future__ import annotations

import math

import pytest

from diptych.registry.system_metrics import EVERY, SystemMetrics


def test_a_sample_has_mlflows_names_and_the_next_one_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("diptych.registry.system_metrics.time.monotonic", lambda: now[0])
    metrics = SystemMetrics()
    first = metrics.sample()
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"} <= set(first)
    assert all(name.startswith("system/") and math.isfinite(value) for name, value in first.items())
    assert 0 < first["system/system_memory_usage_percentage"] < 100

    now[0] += EVERY / 2
    assert metrics.sample() == {}
    now[0] += EVERY
    assert set(metrics.sample()) == set(first)
