"""The environment of a new shell."""

import os
import sys
from pathlib import Path

_OWN = (
    *("AWS_", "COVERAGE_", "DIPTYCH_", "MLFLOW_", "NUMBA_", "OMP_", "PG", "PREFECT_", "PYTEST_"),
    *("ALL_FORKED", "FIRST", "KILLED_AT"),
)


def environment(**others: str) -> dict[str, str]:
    """What this process has set for itself is not in it; this Python's programs are on its PATH."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OWN)}
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return inherited | {"PATH": paths} | others
