"""Use of the machine during a training, by the names that MLflow's page of a run shows as system metrics."""

from __future__ import annotations

import time
from typing import Any

EVERY = 10.0
"""Seconds between two samples."""


class SystemMetrics:
    """Samples of processor, memory, disk and network, taken when figures of the training are logged.

    MLflow's own thread would warn again and again while MLflow is away; these figures wait like all others.
    """

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        # MLflow has no types for them.
        kinds: tuple[Any, ...] = CPUMonitor, DiskMonitor, NetworkMonitor
        self._monitors = [kind() for kind in kinds]
        self._due = 0.0

    def sample(self) -> dict[str, float]:
        """Return the figures since the last sample; none where that is less than `EVERY` seconds ago."""
        if time.monotonic() < self._due:
            return {}
        self._due = time.monotonic() + EVERY
        figures: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            figures |= {f"system/{name}": float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return figures
