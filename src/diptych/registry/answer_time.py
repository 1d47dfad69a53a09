"""The time that a package takes to load and to answer in a clean process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from diptych.errors import DiptychError
from diptych.registry.probe import ANSWER

TIMEOUT = 600
"""Seconds for a package to load and answer."""
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "TMPDIR")
"""Environment variables that a package can read: no secrets."""


def answer_time(package: Path) -> dict[str, float]:
    """Load a package in a clean process; return the seconds it takes (`load_s`), and the ms for one pair (`pair_ms`).

    Raises:
        DiptychError: it does not load without unpickling, or does not answer.
    """
    script = Path(__file__).with_name("probe.py")
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(
                _command(script, package),
                env=environment,
                cwd=folder,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise DiptychError(f"it did not load and answer within {TIMEOUT} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise DiptychError(lines[-1])
    # The package and its libraries may print lines before and after.
    answers = [line for line in done.stdout.splitlines() if line.startswith(ANSWER)]
    if not answers:
        raise DiptychError("it ended without an answer")
    return dict(json.loads(answers[-1].removeprefix(ANSWER)))


def _command(script: Path, package: Path) -> list[str]:
    return [sys.executable, "-I", str(script), str(package)]
