"""Start of a system: each measurement is a separate process, with the Python of that system."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from diptych.project import environment
from peers.task import Precision, Result, Task

ROOT = Path(__file__).resolve().parents[2]
PEERS_PYTHON = ROOT / ".venv-benchmarks/bin/python"


@dataclass(frozen=True)
class Side:
    """A system, by name and module."""

    name: str
    module: str
    is_peer: bool = True


DIPTYCH = Side("diptych", "diptych_side", is_peer=False)
PEERS = (Side("open_clip", "open_clip_peer"), Side("transformers", "vision_text_peer"))
SIDES = (DIPTYCH, *PEERS)


def perform(side: Side, task: Task, workspace: Path) -> Result:
    """Perform `task` in a separate process, and return its result; its stderr is shown only if it fails."""
    process = subprocess.run(
        [PEERS_PYTHON if side.is_peer else sys.executable, "-m", f"peers.{side.module}", *task.arguments()],
        cwd=workspace,
        env=environment.DEFAULTS | os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'benchmarks'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        raise SystemExit(f"{side.name} failed with {task}:\n{process.stderr[-4000:]}")
    result: Result = json.loads(process.stdout.splitlines()[-1])
    return result


def faster_precision(side: Side, task: Task, workspace: Path, wanted: str) -> Precision:
    """Return the precision `wanted`; auto: measure both with the steps of the task, and return the faster one."""
    if wanted != "auto":
        return "bf16" if wanted == "bf16" else "fp32"
    speeds: dict[Precision, float] = {}
    for precision in ("fp32", "bf16"):
        tried = replace(task, precision=precision, epochs=0)
        speeds[precision] = perform(side, tried, workspace)["pairs_per_second"]
        say(f"{side.name}, frozen: {task.frozen}, {precision}: {speeds[precision]:.1f} pairs/s")
    return max(speeds, key=speeds.__getitem__)


def say(line: str) -> None:
    """Print progress to stderr; stdout is for results."""
    print(line, file=sys.stderr, flush=True)


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that both benchmarks have."""
    parser.add_argument(
        "workspace",
        type=lambda text: Path(text).resolve(),
        help="a diptych workspace with artifacts/prepared, weights/efficientnet-lite0 and weights/all-minilm-l6-v2",
    )
    parser.add_argument("--systems", nargs="+", choices=[side.name for side in SIDES], default=[s.name for s in SIDES])
    parser.add_argument(
        "--params",
        type=lambda text: Path(text).resolve(),
        help="diptych's params.yaml, if not the workspace's",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="the peers' pairs a step (default: 64)")
    parser.add_argument(
        "--images", type=int, default=0, help="diptych's images a step, each with its captions (default: as in params)"
    )
    parser.add_argument("--workers", type=int, default=2, help="the peers' loader processes (default: 2)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of every system (default: one a core)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16"],
        default="auto",
        help="auto (default): whichever is faster, tried for each system",
    )
    parser.add_argument("--steps", type=int, default=10, help="steps a measurement of speed takes (default: 10)")
    parser.add_argument("--warmup-steps", type=int, default=3, help="steps before them, not counted (default: 3)")
    parser.add_argument("--seed", type=int, default=0)


def make_task(side: Side, options: argparse.Namespace, scratch: str) -> Task:
    """Return the task of `side` by the common options."""
    return Task(
        batch_size=options.batch_size if side.is_peer else options.images,
        workers=options.workers,
        threads=options.threads,
        device=options.device,
        warmup_steps=options.warmup_steps,
        steps=options.steps,
        seed=options.seed,
        params=str(options.params or options.workspace / "params.yaml"),
        scratch=scratch,
    )


def chosen(options: argparse.Namespace) -> list[Side]:
    """Return the systems that take part."""
    if not PEERS_PYTHON.exists():
        raise SystemExit(f"{PEERS_PYTHON} is missing: run `make benchmarks`.")
    return [side for side in SIDES if side.name in options.systems]
