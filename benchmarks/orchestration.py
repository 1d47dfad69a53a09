"""Cost of the orchestration: `diptych run` compared with `dvc status`, and with the stages run by hand.

    python benchmarks/orchestration.py [--idle 5] [--full 1] [--preset NAME] [--json]

It works in a temporary clone of the last commit of this repository, in which the chain has run once. `--idle` times, it
times `diptych run` with nothing to do and `dvc status`. `--full` times, it times `diptych run --force` and each
`diptych stage …` with `diptych register`. It prints medians of seconds. The machine should be idle otherwise: then
it takes a quarter of an hour with `--preset scenes`, and four minutes with `--preset tiny`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

from tqdm import tqdm

from diptych.project.dvc import STAGES
from diptych.project.environment import prepare

ROOT = Path(__file__).parents[1]
FEW_SCENES = ("data", "scenes", "--train", "60", "--val", "20", "--test", "20")
"""Arguments for the dataset that presets/tiny.yaml is made for."""


class Project:
    """A clone in which the chain has run."""

    def __init__(self, root: Path, preset: str | None) -> None:
        self.root = root
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(root)], check=True)
        if preset == "tiny":
            self.diptych(*FEW_SCENES)
        self.diptych("run", *(("--preset", preset) if preset else ()))

    def diptych(self, *arguments: str) -> None:
        """Run a command of diptych; an error ends the measurement."""
        self.python("-m", "diptych", *arguments)

    def python(self, *arguments: str) -> None:
        """Run Python; an error ends the measurement."""
        done = subprocess.run([sys.executable, *arguments], cwd=self.root, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(arguments)[:200]}: exit code {done.returncode}\n{done.stderr[-4000:]}")

    def by_hand(self) -> None:
        """Run what a run does, without Prefect and DVC."""
        for stage in STAGES:
            self.diptych("stage", stage)
        self.diptych("register")


def in_turn(times: int, **actions: Callable[[], object]) -> dict[str, float]:
    """Return the median of the seconds that each action takes; the actions take turns."""
    durations: dict[str, list[float]] = {name: [] for name in actions}
    for _ in tqdm(range(times), desc=" and ".join(actions)):
        for name, act in actions.items():
            began = time.perf_counter()
            act()
            durations[name].append(time.perf_counter() - began)
    return {name: median(seconds) for name, seconds in durations.items()}


def main() -> None:
    """Measure and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--idle", type=int, default=5, help="runs with nothing to do (5)")
    parser.add_argument("--full", type=int, default=1, help="runs of everything (1)")
    parser.add_argument("--preset", help="name of a preset, in place of params.yaml")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "project"
        prepare(root)
        os.environ.pop("PREFECT_API_URL", None)
        project = Project(root, options.preset)
        idle = in_turn(
            options.idle, status=lambda: project.python("-m", "dvc", "status"), run=lambda: project.diptych("run")
        )
        full = in_turn(options.full, stages=project.by_hand, run=lambda: project.diptych("run", "--force"))
    medians = {"idle": idle, "full": full}
    if options.json:
        print(json.dumps(medians, indent=2))
        return
    times = idle["run"] / idle["status"]
    print(f"nothing to do: {idle['run']:.1f} s, `dvc status` {idle['status']:.1f} s: {times:.2f} times as long")
    share = full["run"] / full["stages"] - 1
    print(f"everything: {full['run']:.1f} s, the stages by hand {full['stages']:.1f} s: {100 * share:+.1f} %")


if __name__ == "__main__":
    main()
