"""Cost of starting: CPU time of each stage's imports and of each command's help, compared with `import torch`.

    python benchmarks/startup.py [--rounds 5] [--json]

Each is a process of its own. A round starts all of them in turn, so that a busy machine slows all alike. It prints
medians of seconds of CPU time, and their ratios to `import torch`.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from statistics import median

from tqdm import tqdm

from diptych.cli.main import COMMANDS
from diptych.project.dvc import STAGES

BARE, TORCH = "python", "import torch"


def processes() -> dict[str, list[str]]:
    """Return the arguments of each Python process, by the name it is shown with."""
    return {
        BARE: ["-c", ""],
        TORCH: ["-c", TORCH],
        **{f"stage {name}": ["-c", f"import diptych.stages.{name}"] for name in STAGES},
        "diptych --help": ["-m", "diptych", "--help"],
        **{f"diptych {name} --help": ["-m", "diptych", name, "--help"] for name in COMMANDS},
    }


def cpu_seconds(arguments: list[str]) -> float:
    """Return the CPU time of a Python process with `arguments`, that of its children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, and print a table or JSON."""
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="times that each process is started")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    started = processes()
    times: dict[str, list[float]] = {name: [] for name in started}
    for _ in tqdm(range(options.rounds), unit="round"):
        for name, arguments in started.items():
            times[name].append(cpu_seconds(arguments))
    medians = {name: median(values) for name, values in times.items()}
    rows = {
        name: {"seconds": round(value, 2), "ratio": round(value / medians[TORCH], 2)} for name, value in medians.items()
    }
    if options.json:
        print(json.dumps(rows, indent=2))
        return
    for name, row in rows.items():
        print(f"{name:28s} {row['seconds']:6.2f} s  {row['ratio']:5.2f}")


if __name__ == "__main__":
    main()
