"""Training pairs (a caption with its image) per second: diptych compared with open_clip and transformers.

    make benchmarks
    .venv/bin/python benchmarks/throughput.py WORKSPACE [--settings none image both] [--steps 10] [--rounds 3]

WORKSPACE has prepared images and captions, and the weights of both towers. All systems train the same towers on the
same pixels and token ids. Each measurement is a separate process, and rounds alternate between the systems. Warm-up
steps do not count; the figures are medians.
  none   all towers learn
  image  the image tower is frozen; diptych is measured from its second epoch on, when it has the tower's features
  both   both towers are frozen, only projections and temperature learn; diptych from its second epoch on
The peers run as they recommend (open_clip: 77 tokens; transformers' example: 128) and, in a second row, with captions
padded only to the batch's longest, as in diptych. Ratios are diptych over peer. One reason for them is that diptych
encodes an image once for all its captions (params.yaml: train.captions_per_image), and a peer once for each pair.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from peers.processes import Side, add_common_options, chosen, faster_precision, make_task, perform, say
from peers.task import Frozen, Result, Task

TITLES: dict[Frozen, str] = {
    "none": "all towers learn",
    "image": "image tower frozen",
    "both": "both towers frozen",
}


@dataclass
class Row:
    """One system in one setting, with the results of its rounds."""

    side: Side
    task: Task
    results: list[Result] = field(default_factory=list)

    @property
    def speeds(self) -> list[float]:
        """Pairs per second in each round."""
        return [result["pairs_per_second"] for result in self.results]

    @property
    def median(self) -> float:
        """Median speed of the rounds."""
        return statistics.median(self.speeds)


def make_rows(options: argparse.Namespace, frozen: Frozen, scratch: str) -> list[Row]:
    """Return a row for each system in the setting `frozen`; each peer has a second row with short captions."""
    rows = []
    for side in chosen(options):
        task = replace(make_task(side, options, scratch), frozen=frozen)
        task = replace(task, precision=faster_precision(side, task, options.workspace, options.precision))
        rows.append(Row(side, task))
        if side.is_peer:
            rows.append(Row(side, replace(task, text_length="longest")))
    return rows


def measure(rows: list[Row], rounds: int, workspace: Path) -> None:
    """Measure all rows in turn, so that a slow phase of the machine slows all of them down."""
    for round_ in range(rounds):
        for row in rows:
            row.results.append(perform(row.side, row.task, workspace))
            say(
                f"round {round_ + 1}: {row.side.name}, frozen: {row.task.frozen}, {row.task.text_length}: "
                f"{row.speeds[-1]:.1f} pairs/s, loss {row.results[-1]['losses'][0]} to {row.results[-1]['losses'][-1]}"
            )


def print_rows(frozen: Frozen, rows: list[Row]) -> None:
    """Print a line for each system, and its settings below."""
    ours = next((row.median for row in rows if not row.side.is_peer), None)
    print(f"\n{TITLES[frozen]}")
    for row in rows:
        text = "as recommended" if row.task.text_length == "recommended" and row.side.is_peer else "shortest padding"
        ratio = f"diptych is {ours / row.median:5.2f} times as fast" if ours and row.side.is_peer else ""
        spread = f"({min(row.speeds):.1f} to {max(row.speeds):.1f})"
        print(f"  {row.side.name:13} {text:17} {row.median:8.1f} pairs/s {spread:20} {ratio}")
    for row in rows:
        print(f"    {row.results[0]['settings']}")


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_options(parser)
    parser.add_argument("--settings", nargs="+", choices=list(TITLES), default=list(TITLES), help="default: all three")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each system and setting (default: 3)")
    parser.add_argument("--record", type=Path, help="a file to append a JSON line to for each measurement")
    return parser.parse_args()


def main() -> None:
    """Measure and print each setting."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as scratch:
        for frozen in options.settings:
            rows = make_rows(options, frozen, scratch)
            measure(rows, options.rounds, options.workspace)
            print_rows(frozen, rows)
            if options.record:
                record(options.record, rows)


def record(path: Path, rows: list[Row]) -> None:
    """Append every measurement to `path`."""
    with path.open("a", encoding="utf-8") as file:
        for row in rows:
            for result in row.results:
                file.write(json.dumps({"system": row.side.name, "frozen": row.task.frozen, **result}) + "\n")


if __name__ == "__main__":
    main()
