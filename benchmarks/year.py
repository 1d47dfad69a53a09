"""A year of a project's life, on real services: twelve drops, a run by schedule each, and what must have come of them.

    python benchmarks/year.py [--folder FOLDER] [--months 12] [--skip-reproduce] [--json summary.json]

In FOLDER (default: a temporary one) it makes a clone of this repository as it is committed, with a small dataset and
small towers; starts PostgreSQL, S3, MLflow, Prefect and a worker by the scripts of docker/; and deploys. Each month a
drop comes into the inbox, and Prefect's scheduler makes a run that takes it, trains, registers, asks the gate and
promotes. Some drops are bad: pictures that are cut off, a table that is, one that came before, one of another kind, and
one whose captions belong to other pictures. The model of that one is rejected, and a person goes back to the dataset
before it (`diptych data revert champion`); another month a person rolls back. In the end every version is made again
(`diptych reproduce`), one of them in a second clone that has only git and the DVC remote.

Prints a table of the months, the history, where the time went, and what must be so; ends with 1 if anything is not.
Needs PostgreSQL's initdb and postgres on PATH; two idle cores take half an hour.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections import Counter
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
"""Reproductions at once; each computes on one core."""


def play(running: Stack, model: RegisteredModel, months: Sequence[Month]) -> list[Played]:
    """Month after month, with what a person does in between."""
    retraining = Retraining(running.project, f"{running.prefect.url}/api")
    year: list[Played] = []
    for month in months:
        one = play_month(running.project, retraining, model, month)
        year.append(replace(one, done=act(running.project, month)))
        say(row(year[-1]))
        for check in of_month(one, year[-2] if len(year) > 1 else None):
            if not check.holds:
                say(f"NOT SO: {check.claim} ({check.found})\n" + "\n".join(one.run.logs[-40:]))
    return year


def play_month(project: Project, retraining: Retraining, model: RegisteredModel, month: Month) -> Played:
    """A drop, and the run that it is taken by."""
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
    """What a person does after the month's run; returns what was said."""
    if month.afterwards == "revert":
        return project.diptych("data", "revert", "champion").strip()
    if month.afterwards == "rollback":
        return project.diptych("rollback", "--reason", "people find less with it").strip()
    return ""


def numbers(model: RegisteredModel) -> list[str]:
    return model.numbers() if model.exists() else []


def package_problem(model: RegisteredModel, number: str) -> str:
    """Why a version's package cannot be used; empty where it can."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            model.download(model.find(number), Path(scratch))
        except DiptychError as error:
            return str(error)
    return ""


def reproduce(project: Project, number: str) -> Check:
    """A version made again from its tags alone."""
    began = time.monotonic()
    claim = f"version {number} is made again in {project.root.name}, to the bit"
    said = project.run("diptych", "reproduce", number, "--json", fails=True)
    if not said.startswith("{"):
        return Check(claim, False, said[-1000:])
    verdict = json.loads(said)
    same = [one["what"] for one in verdict["findings"] if one["identical"]]
    holds = verdict["identical"] and "weights" in same
    found = f"{time.monotonic() - began:.0f} s; identical: {', '.join(same)}"
    say(f"{'ok' if holds else 'NOT SO'}: {claim} ({found})")
    return Check(claim, holds, found)


def reproduce_all(running: Stack, model: RegisteredModel) -> list[Check]:
    """Every version in the project, and the champion where there is nothing but git and the DVC remote."""
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


def row(one: Played) -> str:
    """Of the table."""
    rsum = "" if one.rsum is None else f"{one.rsum:.1f}"
    cells = (
        f"{one.month.number:>5}",
        f"{one.month.kind:<14}",
        f"{one.drop['outcome']:<8}",
        f"{'yes' if one.run.trained else 'no':<7}",
        f"{one.version or '':>7}",
        f"{rsum:>6}",
        f"{one.gate:<9}",
        f"{one.champion or '':>8}",
        f"{one.run.seconds:>5.0f}",
        f"{one.seconds:>5.0f}",
    )
    return "  ".join(cells) + (f"  then {one.month.afterwards}" if one.month.afterwards else "")


HEAD = "month  drop            outcome   trained  version    RSUM  gate       champion    run    all"


def tasks_of(year: Sequence[Played]) -> dict[str, float]:
    """Seconds of all runs, by the names of the tasks; the rest is Prefect's, and the start of processes."""
    seconds: Counter[str] = Counter()
    for one in year:
        seconds.update({name.rpartition("-")[0] or name: value for name, value in one.run.tasks.items()})
    seconds["between the tasks"] = sum(one.run.seconds - sum(one.run.tasks.values()) for one in year)
    return dict(seconds.most_common())


@contextmanager
def chosen_folder(folder: Path | None) -> Iterator[Path]:
    """One of the user's, which stays, or a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="diptych-year-") as made:
            yield Path(made)
        return
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty; name a folder that is, or is not there yet.")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder.resolve()


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where everything lies, and stays (default: a temporary one)")
    parser.add_argument("--months", type=int, choices=range(1, 13), default=12, metavar="N", help="of twelve")
    parser.add_argument("--skip-reproduce", action="store_true", help="make no version again")
    parser.add_argument("--json", type=Path, help="write the summary there")
    return parser.parse_args()


def live(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The year, and all that is found at its end."""
    marks = [time.monotonic()]
    with stack(folder) as running:
        marks.append(time.monotonic())
        model = RegisteredModel(MlflowClient(running.mlflow.url), MODEL, running.mlflow.url)
        year = play(running, model, YEAR[: options.months])
        marks.append(time.monotonic())
        events = json.loads(running.project.diptych("history", "--json"))
        versions = [model.find(number) for number in numbers(model)]
        checks = [check for at, one in enumerate(year) for check in of_month(one, year[at - 1] if at else None)]
        checks += of_year(year, events, running)
        checks += of_versions(versions, [package_problem(model, one.version) for one in versions], running)
        if not options.skip_reproduce:
            checks += reproduce_all(running, model)
        marks.append(time.monotonic())
        history = running.project.diptych("history")
    names = ("services and project", "months", "versions")
    spent = {name: end - begin for name, begin, end in zip(names, marks, marks[1:], strict=False)}
    return {
        "months": [one.to_json() for one in year],
        "history": events,
        "versions": [one.to_json() for one in versions],
        "checks": [check._asdict() for check in checks],
        "seconds": spent,
        "tasks": tasks_of(year),
        "shown": [HEAD, *map(row, year), "", *history.splitlines()],
    }


def show(summary: dict[str, Any]) -> None:
    """For people."""
    print("\n".join(summary["shown"]))
    print("\nseconds: " + ", ".join(f"{name} {value:.0f}" for name, value in summary["seconds"].items()))
    print("of the runs: " + ", ".join(f"{name} {value:.0f}" for name, value in summary["tasks"].items()) + "\n")
    for check in summary["checks"]:
        found = f": {check['found']}" if check["found"] else ""
        print(f"{'ok' if check['holds'] else 'NO':3} {check['claim']}{found}"[:240])


def main() -> None:
    options = parse_options()
    # The servers are processes of their own, which end with the blocks that began them.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with chosen_folder(options.folder) as folder:
        summary = live(options, folder)
    show(summary)
    if options.json:
        options.json.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    raise SystemExit(not all(check["holds"] for check in summary["checks"]))


if __name__ == "__main__":
    main()
