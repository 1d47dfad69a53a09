"""Two nodes of a Ray cluster on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

import diptych


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """Two nodes with two places each."""
    from ray.cluster_utils import Cluster

    # Paths of sockets may have 107 bytes.
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="ray", dir="/tmp") as folder:
        patch.setenv("RAY_TMPDIR", folder)
        # The workers import `cluster_work`, and the diptych of this process.
        folders = Path(__file__).parent, Path(diptych.__file__).parents[1]
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, folders)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        started = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        started.add_node(num_cpus=2)
        yield started
        import ray

        ray.shutdown()
        started.shutdown()


@pytest.fixture
def joined(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The nodes, to which this process stays connected: workers start in seconds, and end with the connection."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    if not ray.is_initialized():
        ray.init(nodes.address, namespace="diptych", log_to_driver=False)
    return nodes
