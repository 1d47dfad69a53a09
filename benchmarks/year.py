"""A year of a project's life, on real services: twelve drops, a scheduled run for each, and checks of the outcome.

    python benchmarks/year.py [--folder FOLDER] [--months 12] [--skip-reproduce] [--json summary.json]

In FOLDER (default: a temporary one) it makes a clone of the last commit of this repository, with a small dataset and
small towers. It starts PostgreSQL, S3, MLflow, Prefect and a worker by the scripts of docker/, and deploys. Each month
a drop comes into the inbox, and Prefect's scheduler makes a run that ingests it, trains, registers, asks the gate and
promotes. Some drops are bad: truncated pictures, a truncated table, a repetition of an earlier drop, pictures of
another kind, and captions of other pictures. The model of the last is rejected, and a person returns to the dataset
before it (`diptych data revert champion`); in another month a person rolls back. At the end every version is reproduced
(`diptych reproduce`), one of them in a second clone that has only git and the DVC remote.

It prints a table of the months, the history, the time by part, and the checks. The exit code is 1 if a check fails. It
needs PostgreSQL's initdb and postgres on PATH; two idle cores take half an hour.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from months.checks import Check, Played, of_month, of_versions, of_year
from months.drops import YEAR, Month, drop
from months.project import Project, clone, say
from months.scheduled import Retraining
from months.stack import Stack, stack

from diptych.errors import DiptychError
from diptych.registry.registered_model import RegisteredModel

MODEL = "year"
PROCESSES = 2
"""Reproductions at the same time; each computes on one core."""


def play(running: Stack, model: RegisteredModel, months: Sequence[Month]) -> list[Played]:
    """Play the months in turn, with the actions of a person after each."""
    retraining = Retraining(running.project, f"{running.prefect.url}/api")
    year: list[Played] = []
    for month in months:
        played = play_month(running.project, retraining, model, month)
        year.append(replace(played, done=act(running.project, month)))
        say(row(year[-1]))
        for check in of_month(played, year[-2] if len(year) > 1 else None):
            if not check.holds:
                say(f"NOT SO: {check.claim} ({check.found})\n" + "\n".join(played.run.logs[-40:]))
    return year


def play_month(project: Project, retraining: Retraining, model: RegisteredModel, month: Month) -> Played:
    """Write a drop, and wait for the run that ingests it."""
    began, data, known = time.monotonic(), project.dataset_version(), numbers(model)
    say(f"month {month.number}: {month.kind}")
    drop(project.root / "inbox", month)
    run = retraining.by_schedule()
    new = [number for number in numbers(model) if number not in known]
    version = model.find(new[-1]) if new else None
    champion = model.champion() if model.exists() else None
    return Played(
        month=month,
        run=run,
        drop=project.drop_outcome(month.name),
        data_before=data,
        data_after=project.dataset_version(),
        version=version.version if version else None,
        gate=version.tags.get("gate", "") if version else "",
        rsum=version.metrics.get("reranked/rsum") if version else None,
        champion=champion.version if champion else None,
        seconds=time.monotonic() - began,
    )


def act(project: Project, month: Month) -> str:
    """Do what a person does after the month's run; return the output of the command."""
    if month.afterwards == "revert":
        return project.diptych("data", "revert", "champion").strip()
    if month.afterwards == "rollback":
        return project.diptych("rollback", "--reason", "people find less with it").strip()
    return ""


def numbers(model: RegisteredModel) -> list[str]:
    """Return the numbers of the versions; none before the first version."""
    return model.numbers() if model.exists() else []


def package_problem(model: RegisteredModel, number: str) -> str:
    """Return why a version's package cannot be used; empty where it can."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            model.download(model.find(number), Path(scratch))
        except DiptychError as error:
            return str(error)
    return ""


def reproduce(project: Project, number: str) -> Check:
    """Reproduce a version from its tags alone."""
    began = time.monotonic()
    claim = f"version {number} is reproduced in {project.root.name}, to the bit"
    output = project.run("diptych", "reproduce", number, "--json", fails=True)
    if not output.startswith("{"):
        return Check(claim, False, output[-1000:])
    verdict = json.loads(output)
    same = [finding["what"] for finding in verdict["findings"] if finding["identical"]]
    holds = verdict["identical"] and "weights" in same
    found = f"{time.monotonic() - began:.0f} s; identical: {', '.join(same)}"
    say(f"{'ok' if holds else 'NOT SO'}: {claim} ({found})")
    return Check(claim, holds, found)


def reproduce_all(running: Stack, model: RegisteredModel) -> list[Check]:
    """Reproduce every version in the project, and the champion in a clone that has only git and the DVC remote."""
    champion = model.champion()
    colleague = clone(
        running.project.root.parent / "origin.git",
        running.project.root.parent / "colleague",
        running.project.environment,
    )
    tasks = [(running.project, number) for number in model.numbers()]
    tasks += [(colleague, champion.version)] if champion else []
    with ThreadPoolExecutor(PROCESSES) as pool:
        return list(pool.map(lambda task: reproduce(*task), tasks))


def row(played: Played) -> str:
    """Return the line of the table."""
    rsum = "" if played.rsum is None else f"{played.rsum:.1f}"
    cells = (
        f"{played.month.number:>5}",
        f"{played.month.kind:<14}",
        f"{played.drop['outcome']:<8}",
        f"{'yes' if played.run.trained else 'no':<7}",
        f"{played.version or '':>7}",
        f"{rsum:>6}",
        f"{played.gate:<9}",
        f"{played.champion or '':>8}",
        f"{played.run.seconds:>5.0f}",
        f"{played.seconds:>5.0f}",
    )
    return "  ".join(cells) + (f"  then {played.month.afterwards}" if played.month.afterwards else "")


HEAD = "month  drop            outcome   trained  version    RSUM  gate       champion    run    all"


def tasks_of(year: Sequence[Played]) -> dict[str, float]:
    """Return the seconds of all runs by the names of the tasks; the rest is Prefect, and the start of processes."""
    seconds: dict[str, float] = defaultdict(float)
    for played in year:
        for name, value in played.run.tasks.items():
            seconds[name.rpartition("-")[0] or name] += value
        seconds["between the tasks"] += played.run.seconds - sum(played.run.tasks.values())
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


@contextmanager
def chosen_folder(folder: Path | None) -> Iterator[Path]:
    """Yield the user's folder, which is kept, or a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="diptych-year-") as temporary:
            yield Path(temporary)
        return
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty; name a folder that is, or is not there yet.")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder.resolve()


def parse_options() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="folder of all files, which is kept (default: a temporary one)")
    parser.add_argument(
        "--months", type=int, choices=range(1, 13), default=12, metavar="N", help="the number of months"
    )
    parser.add_argument("--skip-reproduce", action="store_true", help="reproduce no version")
    parser.add_argument("--json", type=Path, help="file to write the summary to")
    return parser.parse_args()


def live(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Play the year and check it; return the summary."""
    marks = [time.monotonic()]
    with stack(folder) as running:
        marks.append(time.monotonic())
        model = RegisteredModel(MlflowClient(running.mlflow.url), MODEL, running.mlflow.url)
        year = play(running, model, YEAR[: options.months])
        marks.append(time.monotonic())
        events = json.loads(running.project.diptych("history", "--json"))
        versions = [model.find(number) for number in numbers(model)]
        pairs = zip(year, [None, *year], strict=False)
        checks = [check for played, before in pairs for check in of_month(played, before)]
        checks += of_year(year, events, running)
        checks += of_versions(versions, [package_problem(model, version.version) for version in versions], running)
        if not options.skip_reproduce:
            checks += reproduce_all(running, model)
        marks.append(time.monotonic())
        history = running.project.diptych("history")
    names = ("services and project", "months", "versions")
    spent = {name: end - begin for name, begin, end in zip(names, marks, marks[1:], strict=False)}
    return {
        "months": [played.to_json() for played in year],
        "history": events,
        "versions": [version.to_json() for version in versions],
        "checks": [check._asdict() for check in checks],
        "seconds": spent,
        "tasks": tasks_of(year),
        "shown": [HEAD, *map(row, year), "", *history.splitlines()],
    }


def show(summary: dict[str, Any]) -> None:
    """Print the summary for people."""
    print("\n".join(summary["shown"]))
    print("\nseconds: " + ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items()))
    print("of the runs: " + ", ".join(f"{name} {value:.0f}" for name, value in summary["tasks"].items()) + "\n")
    for check in summary["checks"]:
        found = f": {check['found']}" if check["found"] else ""
        print(f"{'ok' if check['holds'] else 'NO':3} {check['claim']}{found}"[:240])


def main() -> None:
    """Play the year and print the summary."""
    options = parse_options()
    # SIGTERM becomes an exit, so that the servers are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with chosen_folder(options.folder) as folder:
        summary = live(options, folder)
    show(summary)
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    raise SystemExit(not all(check["holds"] for check in summary["checks"]))


if __name__ == "__main__":
    main()
