"""Kills a part of the stack in the middle of a run, again and again, and looks at what is left after a recovery.

    python benchmarks/kills.py [--rounds 50] [--seed 0] [--folder FOLDER] [--json]

PostgreSQL, MLflow, Prefect and a worker run here by the scripts of docker/, on a clone of the last commit of this
repository. Each round changes a parameter, in some of them new pairs are dropped (good ones, known ones, broken ones),
and a run is triggered: by the deployment, or, where the last kill has left its place taken, by `diptych run`. At a
moment that is drawn, within a phase that is drawn too, one of the victims is killed with SIGKILL: the flow's process,
that of the stage, the worker with its flow, the Prefect server, the MLflow server or PostgreSQL with all its processes.

Recovery is what an operator would do: start the server that was killed, wait until what is left of the run has ended,
and `diptych run --promotion auto`, once. Then every promise has to hold (killing/checks.py). `recover` is the time from
the kill to the end of that command, `place` that until the deployment's place was free. Ends with 1 if a round did not
recover.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil
from killing.checks import Checks
from killing.run import Run, engine_of, is_past, kill_tree
from killing.stack import Place, Stack, running

PATIENCE = 900.0
"""Seconds for a run, however busy the machine."""
LONGEST = 60.0
"""Of the delays that are drawn, in seconds."""
NO_VICTIM = "there was no victim"
PROMOTING = 0.8
"""Seconds that a promotion takes, roughly."""
ANY = ("inbox", "validate", "preprocess", "train", "evaluate", "register", "share", "gate", "promote")
STAGES = ("inbox", "validate", "preprocess", "train", "evaluate")
"""Phases that have a stage at work; in the inbox's it is that which validates a drop."""
VICTIMS = {
    "flow": ANY,
    "stage": STAGES,
    "worker": ANY,
    "prefect": ANY,
    "mlflow": ANY,
    "postgres": ANY,
}


@dataclass
class Round:
    """What was planned, and what came of it."""

    number: int
    victim: str
    target: str
    drop: str = ""
    by: str = ""
    phase: str = ""
    run_ended: str = ""
    """How the run ended whose victim was killed."""
    recover_s: float = 0.0
    place_s: float | None = None
    outcome: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def recovered(self) -> bool:
        """Whether everything is as it has to be."""
        return not self.problems

    def line(self) -> str:
        """Of the table."""
        place = "" if self.place_s is None else f"{self.place_s:.0f}"
        cells = [str(self.number), self.by, self.drop, self.victim, self.target, self.phase, self.run_ended]
        widths = (3, 10, 4, 8, 10, 10, 11)
        text = " ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
        return f"{text} {self.recover_s:7.0f} {place:>5}  {'yes' if self.recovered else 'NO'}"


HEAD = f"{'n':3} {'by':10} {'drop':4} {'victim':8} {'aimed at':10} {'hit':10} {'run':11} recover place  recovered"


def plan(rounds: int, draw: random.Random) -> list[Round]:
    """Each victim in turn, each in its phases in turn; something is dropped in about every third round."""
    phases = {}
    for victim, targets in VICTIMS.items():
        shuffled = list(targets)
        draw.shuffle(shuffled)
        phases[victim] = cycle(shuffled)
    kinds = cycle(["good", "good", "same", "good", "bad"])
    planned = []
    for number, victim in zip(range(1, rounds + 1), cycle(VICTIMS), strict=False):
        target = next(phases[victim])
        # Without a drop the inbox is looked into in a second.
        drops = target == "inbox" or draw.random() < 0.25
        kind = next(kinds) if drops else ""
        # For what is known already no stage runs.
        kind = "good" if (victim, target) == ("stage", "inbox") else kind
        planned.append(Round(number, victim, target, kind))
    return planned


class Campaign:
    """Rounds on one stack."""

    def __init__(self, stack: Stack, folder: Path, seed: int) -> None:
        self._stack = stack
        self._folder = folder
        self._seed = seed
        self._checks = Checks(stack)
        self._place: Place | None = None
        self._lasts: dict[str, float] = {}

    def begin(self) -> list[str]:
        """A run that nothing happens to: the first champion, and how long each phase takes."""
        self._stack.project.drop("good", random.Random(self._seed))
        run = self._start("deployment", 0)
        begun, phase = time.monotonic(), "start"
        while phase != "end" and (run.process is None or run.is_alive()):
            if (now := run.phase()) != phase:
                self._lasts[phase], begun, phase = time.monotonic() - begun, time.monotonic(), now
            time.sleep(0.05)
        told = self._run_again(0)
        say("phases: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._lasts.items()))
        first = self._checks.after(told)
        # There is no champion before the first.
        return [problem for problem in first if not problem.startswith("previous-champion")]

    def perform(self, one: Round) -> None:
        """A round, from something new to the checks."""
        draw = random.Random(f"{self._seed} {one.number}")
        if one.drop:
            self._stack.project.drop(one.drop, draw)
        self._stack.project.change(one.number, one.target)
        one.by = self._way(one)
        run = self._start(one.by, one.number)
        victim = self._await(run, one, draw)
        one.phase = self._phase(run, one)
        killed = time.monotonic()
        place = Place(self._stack)
        self._kill(run, one, victim)
        self._restart()
        one.problems += self._let_end(run)
        one.run_ended = self._ending(run)
        told = self._run_again(one.number)
        one.recover_s = time.monotonic() - killed
        one.outcome = told.get("decision", {}).get("outcome", told.get("error", ""))
        one.problems += [told["error"]] if "error" in told else self._checks.after(told)
        self._place = place
        one.place_s = place.seconds

    def end(self) -> list[str]:
        """A last run that nothing happens to, by the deployment; then everything is looked at."""
        if self._place is not None and self._place.wait() is None:
            return ["the deployment's place does not become free"]
        self._stack.project.change(100_000, "")
        run = self._start("deployment", 100_000)
        run.wait_until(lambda: False, PATIENCE)
        state = self._stack.state(run.flow_run)
        problems = self._checks.after(self._run_again(100_000)) + self._checks.everything()
        if Place(self._stack).wait() is None:
            problems.append("the place of the last run is not free")
        return problems if state == "Completed" else [f"the last run has ended as {state}", *problems]

    def _way(self, one: Round) -> str:
        """By the deployment, if its place is free or the worker is to be killed."""
        if self._place is None:
            return "deployment"
        if one.victim == "worker" and self._place.wait() is None:
            one.problems.append("the deployment's place did not become free")
        return "deployment" if self._place.seconds is not None else "command"

    def _start(self, by: str, number: int) -> Run:
        worker = self._stack.worker
        if by == "deployment":
            if worker.process is None or worker.process.poll() is not None:
                worker.start()
            log = worker.folder / f"{worker.name}.log"
            offset, process = log.stat().st_size, psutil.Process(worker.process.pid)
            return Run(log, offset, lambda: engine_of(process), self._stack.trigger())
        log = self._folder / "logs" / f"run-{number}.log"
        started = self._stack.start("run", "--promotion", "auto", log=log)
        return Run(log, 0, lambda: psutil.Process(started.pid))

    def _await(self, run: Run, one: Round, draw: random.Random) -> psutil.Process | None:
        """Waits for the moment; returns the stage's process, if that is the victim."""
        phase = "gate" if one.target == "promote" else one.target
        run.wait_until(lambda: run.phase() == phase or is_past(run.phase(), phase), PATIENCE)
        if one.target == "promote":
            run.wait_until(self._checks.is_judged, PATIENCE)
        lasts = PROMOTING if one.target == "promote" else min(self._lasts.get(phase, 1.0), LONGEST)
        if one.victim == "stage":
            run.wait_until(lambda: run.stage() is not None or is_past(run.phase(), phase), PATIENCE)
            lasts = max(lasts - 4.0, 1.0)
        due = time.monotonic() + draw.uniform(0, lasts)
        run.wait_until(lambda: time.monotonic() > due or is_past(run.phase(), phase), PATIENCE)
        if one.victim != "stage":
            return None
        # The one that it was aimed at may have ended in between.
        run.wait_until(lambda: run.stage() is not None, PATIENCE)
        return run.stage()

    def _phase(self, run: Run, one: Round) -> str:
        found = run.phase()
        if found == "gate" and self._checks.is_judged():
            return "promote"
        return found if run.is_alive() or run.process is None else "after it"

    def _kill(self, run: Run, one: Round, stage: psutil.Process | None) -> None:
        if one.victim in ("flow", "stage"):
            process = stage if one.victim == "stage" else run.process
            if process is None or not run.is_alive():
                one.problems.append(NO_VICTIM)
            else:
                process.kill()
            return
        service = getattr(self._stack, one.victim)
        kill_tree(psutil.Process(service.process.pid))
        service.kill()

    def _restart(self) -> None:
        """As the services of compose.yaml are: those that have ended are started again."""
        for service in (self._stack.postgres, self._stack.mlflow, self._stack.prefect, self._stack.worker):
            if service.process is None or service.process.poll() is not None:
                service.kill()
                service.start()

    def _let_end(self, run: Run) -> list[str]:
        """Waits until what is left of the run has ended; returns the problem, if it does not."""
        run.wait_until(lambda: run.process is None, PATIENCE)
        if not run.is_alive():
            return []
        assert run.process is not None
        kill_tree(run.process)
        return [f"the run has not ended within {PATIENCE:.0f} s"]

    def _ending(self, run: Run) -> str:
        if run.phase() == "end":
            return "completed"
        return "failed" if "Finished in state Failed" in run.said or "error: " in run.said else "died"

    def _run_again(self, number: int) -> dict[str, Any]:
        """The one command; what it told, or its error."""
        log = self._folder / "logs" / f"recovery-{number}.log"
        process = self._stack.start("run", "--promotion", "auto", "--json", log=log)
        if process.wait(timeout=PATIENCE):
            return {"error": f"`diptych run` ended with {process.returncode}: {log.read_text()[-1000:]}"}
        try:
            return dict(json.loads(log.with_suffix(".out").read_text()))
        except ValueError as error:
            return {"error": f"what `diptych run --json` printed is no JSON: {error}"}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def campaign(folder: Path, rounds: int, seed: int) -> tuple[list[Round], list[str]]:
    """The rounds as they came out, and what is wrong before the first of them or after the last."""
    planned = plan(rounds, random.Random(seed))
    with running(folder) as stack:
        performed = Campaign(stack, folder, seed)
        wrong = performed.begin()
        say(HEAD)
        for place, one in enumerate(planned):
            performed.perform(one)
            while one.problems == [NO_VICTIM]:
                # Phases last as long as the machine lets them: this moment was drawn too late.
                say(f"{one.line()}: {NO_VICTIM}, once more")
                planned[place] = one = Round(one.number + 1000, one.victim, one.target, one.drop)
                performed.perform(one)
            say(one.line())
            for problem in one.problems:
                say(f"    {problem}")
        return planned, wrong + performed.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a new one, which stays; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="print the rounds as JSON")
    options = parser.parse_args()
    begun = time.monotonic()
    # So that the servers end too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        performed, wrong = campaign(folder.resolve(), options.rounds, options.seed)
    recovered = sum(one.recovered for one in performed)
    for problem in wrong:
        say(f"before or after the rounds: {problem}")
    if options.json:
        print(json.dumps([asdict(one) for one in performed], indent=2))
    else:
        print("\n".join([HEAD, *(one.line() for one in performed)]))
    slowest = max((one.recover_s for one in performed), default=0.0)
    took = time.monotonic() - begun
    say(f"{recovered} of {len(performed)} recovered, the slowest in {slowest:.0f} s; {took:.0f} s in all")
    sys.exit(recovered < len(performed) or bool(wrong))


if __name__ == "__main__":
    main()
