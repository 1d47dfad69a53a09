"""Val RSUM over the time of training: diptych compared with open_clip and transformers.

    make benchmarks
    .venv/bin/python benchmarks/time_to_recall.py WORKSPACE [--setting none] [--epochs 1] [--pairs 6000]

WORKSPACE has prepared images and captions, and the weights of both towers. Every system fine-tunes the same towers on
the same data with its recommended settings, or with the best of the learning rates given for it. It is evaluated after
each epoch by the same metrics, the towers alone. Evaluation and saving do not count as time of training. The last lines
give the time at which each system reached the best RSUM of the best peer, and how much sooner diptych did.
An epoch of diptych shows every image once with all captions that params.yaml asks for. An epoch of a peer shows every
pair, or the number of --pairs: with schedules for less than an epoch of all pairs, peers need not take hours.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from peers.processes import Side, add_common_options, chosen, faster_precision, make_task, perform, say
from peers.task import Result

from diptych.config import load_params


@dataclass(frozen=True)
class Run:
    """One system with one learning rate."""

    side: Side
    result: Result

    @property
    def best(self) -> float:
        """The highest RSUM of an epoch."""
        return max(epoch["rsum"] for epoch in self.result["epochs"])

    def seconds_to(self, rsum: float) -> float | None:
        """Return the seconds of training until the first epoch with at least `rsum`; None where there is none."""
        return next((epoch["seconds"] for epoch in self.result["epochs"] if epoch["rsum"] >= rsum), None)


def train(side: Side, options: argparse.Namespace, scratch: str) -> list[Run]:
    """Train `side` once for each learning rate given for it; without one, with the recommended rate."""
    task = replace(make_task(side, options, scratch), frozen=options.setting)
    precision = faster_precision(side, task, options.workspace, options.precision)
    epochs = options.epochs if side.is_peer else options.diptych_epochs or load_params(Path(task.params)).train.epochs
    runs = []
    for rate in _rates(side, options):
        tried = replace(
            task,
            precision=precision,
            epochs=epochs,
            pairs=options.pairs,
            budget=options.budget,
            learning_rate=rate,
        )
        runs.append(Run(side, perform(side, tried, options.workspace)))
        say(f"{side.name}: best RSUM {runs[-1].best:.1f}")
    return runs


def _rates(side: Side, options: argparse.Namespace) -> list[float]:
    given = {"open_clip": options.open_clip_rates, "transformers": options.transformers_rates}
    return given.get(side.name, [0.0])


def print_run(run: Run) -> None:
    """Print the settings of a run, and a line for each epoch."""
    print(f"\n{run.result['settings']}")
    for number, epoch in enumerate(run.result["epochs"], start=1):
        print(f"  epoch {number:3}  {epoch['seconds']:9.1f} s  val RSUM {epoch['rsum']:6.2f}")


def print_verdict(best: list[Run]) -> None:
    """Print the time at which each system's best run reached the best RSUM of the best peer."""
    peers = [run for run in best if run.side.is_peer]
    if not peers:
        return
    target = max(run.best for run in peers)
    print(f"\ntime of training to val RSUM {target:.2f}, the best that a peer reached")
    times = {run.side.name: run.seconds_to(target) for run in best}
    for run in best:
        seconds = times[run.side.name]
        print(f"  {run.side.name:13} {'never' if seconds is None else f'{seconds:.1f} s':>11}  (best {run.best:.2f})")
    fastest = min(seconds for run in peers if (seconds := times[run.side.name]) is not None)
    if ours := times.get("diptych"):
        print(f"  diptych is {fastest / ours:.2f} times as fast")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser)
    parser.add_argument(
        "--setting",
        choices=["none", "image", "both"],
        default="none",
        help="which towers are frozen (default: none)",
    )
    parser.add_argument("--epochs", type=int, default=5, help="the length of the peers' schedules (default: 5)")
    parser.add_argument(
        "--pairs", type=int, default=0, help="pairs in an epoch of the peers, the same in each (default: all of train)"
    )
    parser.add_argument("--diptych-epochs", type=int, default=0, help="epochs of diptych (default: as in params)")
    parser.add_argument(
        "--budget", type=float, default=0.0, help="seconds of training after which no epoch begins (default: no limit)"
    )
    rates = "learning rates to try; the best run counts (default: the recommended one)"
    parser.add_argument("--open-clip-rates", type=float, nargs="+", default=[0.0], help=rates)
    parser.add_argument("--transformers-rates", type=float, nargs="+", default=[0.0], help=rates)
    return parser.parse_args()


def main() -> None:
    """Train all systems and print their runs."""
    options = parse_options()
    best = []
    with tempfile.TemporaryDirectory() as scratch:
        for side in chosen(options):
            runs = train(side, options, scratch)
            best.append(max(runs, key=lambda run: run.best))
            for run in runs:
                print_run(run)
    print_verdict(best)


if __name__ == "__main__":
    main()
