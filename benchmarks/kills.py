"""Kills of parts of the stack in the middle of a run, again and again, and checks after each recovery.

    python benchmarks/kills.py [--rounds 50] [--seed 0] [--folder FOLDER] [--json]

PostgreSQL, MLflow, Prefect and a worker run here by the scripts of docker/, on a clone of the last commit of this
repository. Each round changes a parameter; in some rounds new pairs are dropped: good, known or broken ones. Then a run
is triggered: by the deployment, or by `diptych run` where the last kill has left the deployment's slot occupied. At a
random moment within a random phase a victim is killed with SIGKILL: the flow's process, the stage's process, the worker
with its flow, the Prefect server, the MLflow server, or PostgreSQL with all its processes.

Recovery is what an operator would do: start the killed server, wait for the end of what is left of the run, and run
`diptych run --promotion auto` once. Then every promise has to hold (killing/checks.py). `recover` is the time from the
kill to the end of that command; `place` is the time until the deployment's slot was free. The exit code is 1 if a round
did not recover.
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

import psutil  # type: ignore[import-untyped]
from killing.checks import Checks
from killing.run import Run, engine_of, is_past, kill_tree
from killing.stack import SlotWatch, Stack, running

PATIENCE = 900.0
"""Seconds for a run, however busy the machine."""
LONGEST = 60.0
"""Maximum of the random delays, in seconds."""
NO_VICTIM = "there was no victim"
PROMOTING = 0.8
"""Approximate seconds of a promotion."""
ANY = ("inbox", "validate", "preprocess", "train", "evaluate", "register", "share", "gate", "promote")
STAGES = ("inbox", "validate", "preprocess", "train", "evaluate")
"""Phases in which a stage works; in the phase of the inbox, the stage validates a drop."""
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
    """One kill: its plan and its outcome."""

    number: int
    victim: str
    target: str
    drop: str = ""
    by: str = ""
    phase: str = ""
    run_ended: str = ""
    """The end of the run during which the victim was killed."""
    recover_s: float = 0.0
    place_s: float | None = None
    outcome: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def recovered(self) -> bool:
        """True if no check has found a problem."""
        return not self.problems

    def line(self) -> str:
        """Return the line of the table."""
        place = "" if self.place_s is None else f"{self.place_s:.0f}"
        cells = [str(self.number), self.by, self.drop, self.victim, self.target, self.phase, self.run_ended]
        widths = (3, 10, 4, 8, 10, 10, 11)
        text = " ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True))
        return f"{text} {self.recover_s:7.0f} {place:>5}  {'yes' if self.recovered else 'NO'}"


HEAD = f"{'n':3} {'by':10} {'drop':4} {'victim':8} {'aimed at':10} {'hit':10} {'run':11} recover place  recovered"


def plan(rounds: int, draw: random.Random) -> list[Round]:
    """Plan the rounds: each victim in turn, each in its phases in turn, with a drop in about every third round."""
    phases = {}
    for victim, targets in VICTIMS.items():
        shuffled = list(targets)
        draw.shuffle(shuffled)
        phases[victim] = cycle(shuffled)
    kinds = cycle(["good", "good", "same", "good", "bad"])
    planned = []
    for number, victim in zip(range(1, rounds + 1), cycle(VICTIMS), strict=False):
        target = next(phases[victim])
        # The phase of the inbox takes only a second without a drop.
        drops = target == "inbox" or draw.random() < 0.25
        kind = next(kinds) if drops else ""
        # For known pairs no stage runs.
        kind = "good" if (victim, target) == ("stage", "inbox") else kind
        planned.append(Round(number, victim, target, kind))
    return planned


class Campaign:
    """A series of rounds on one stack."""

    def __init__(self, stack: Stack, folder: Path, seed: int) -> None:
        self._stack = stack
        self._folder = folder
        self._seed = seed
        self._checks = Checks(stack)
        self._slot: SlotWatch | None = None
        self._lasts: dict[str, float] = {}

    def begin(self) -> list[str]:
        """Make the first champion by a run without a kill, and measure the phases; return the problems."""
        self._stack.project.drop("good", random.Random(self._seed))
        run = self._start("deployment", 0)
        begun, phase = time.monotonic(), "start"
        while phase != "end" and (run.process is None or run.is_alive()):
            if (now := run.phase()) != phase:
                self._lasts[phase], begun, phase = time.monotonic() - begun, time.monotonic(), now
            time.sleep(0.05)
        summary = self._run_again(0)
        say("phases: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self._lasts.items()))
        first = self._checks.after(summary)
        # There is no champion before the first.
        return [problem for problem in first if not problem.startswith("previous-champion")]

    def perform(self, round_: Round) -> None:
        """Perform a round, from the new data to the checks."""
        draw = random.Random(f"{self._seed} {round_.number}")
        if round_.drop:
            self._stack.project.drop(round_.drop, draw)
        self._stack.project.change(round_.number, round_.target)
        round_.by = self._trigger_of(round_)
        run = self._start(round_.by, round_.number)
        victim = self._await(run, round_, draw)
        round_.phase = self._phase(run)
        killed = time.monotonic()
        slot = SlotWatch(self._stack)
        self._kill(run, round_, victim)
        self._restart()
        round_.problems += self._let_end(run)
        round_.run_ended = self._ending(run)
        summary = self._run_again(round_.number)
        round_.recover_s = time.monotonic() - killed
        round_.outcome = summary.get("decision", {}).get("outcome", summary.get("error", ""))
        round_.problems += [summary["error"]] if "error" in summary else self._checks.after(summary)
        self._slot = slot
        round_.place_s = slot.seconds

    def end(self) -> list[str]:
        """Make a last run by the deployment, without a kill, and check everything; return the problems."""
        if self._slot is not None and self._slot.wait() is None:
            return ["the deployment's slot does not become free"]
        self._stack.project.change(100_000, "")
        run = self._start("deployment", 100_000)
        run.wait_until(lambda: False, PATIENCE)
        state = self._stack.state(run.flow_run)
        problems = self._checks.after(self._run_again(100_000)) + self._checks.everything()
        if SlotWatch(self._stack).wait() is None:
            problems.append("the slot of the last run is not free")
        return problems if state == "Completed" else [f"the last run has ended as {state}", *problems]

    def _trigger_of(self, round_: Round) -> str:
        """Return "deployment" if its slot is free or the worker is the victim, else "command"."""
        if self._slot is None:
            return "deployment"
        if round_.victim == "worker" and self._slot.wait() is None:
            round_.problems.append("the deployment's slot did not become free")
        return "deployment" if self._slot.seconds is not None else "command"

    def _start(self, by: str, number: int) -> Run:
        worker = self._stack.worker
        if by == "deployment":
            if worker.process is None or worker.process.poll() is not None:
                worker.start()
            assert worker.process is not None
            log = worker.folder / f"{worker.name}.log"
            offset, process = log.stat().st_size, psutil.Process(worker.process.pid)
            return Run(log, offset, lambda: engine_of(process), self._stack.trigger())
        log = self._folder / "logs" / f"run-{number}.log"
        started = self._stack.start("run", "--promotion", "auto", log=log)
        return Run(log, 0, lambda: psutil.Process(started.pid))

    def _await(self, run: Run, round_: Round, draw: random.Random) -> psutil.Process | None:
        """Wait for the moment of the kill; return the stage's process if that is the victim."""
        phase = "gate" if round_.target == "promote" else round_.target
        run.wait_until(lambda: run.phase() == phase or is_past(run.phase(), phase), PATIENCE)
        if round_.target == "promote":
            run.wait_until(self._checks.is_judged, PATIENCE)
        lasts = PROMOTING if round_.target == "promote" else min(self._lasts.get(phase, 1.0), LONGEST)
        if round_.victim == "stage":
            run.wait_until(lambda: run.stage() is not None or is_past(run.phase(), phase), PATIENCE)
            lasts = max(lasts - 4.0, 1.0)
        due = time.monotonic() + draw.uniform(0, lasts)
        run.wait_until(lambda: time.monotonic() > due or is_past(run.phase(), phase), PATIENCE)
        if round_.victim != "stage":
            return None
        # The intended stage may have ended in the meantime.
        run.wait_until(lambda: run.stage() is not None, PATIENCE)
        return run.stage()

    def _phase(self, run: Run) -> str:
        phase = run.phase()
        if phase == "gate" and self._checks.is_judged():
            return "promote"
        return phase if run.is_alive() or run.process is None else "after it"

    def _kill(self, run: Run, round_: Round, stage: psutil.Process | None) -> None:
        if round_.victim in ("flow", "stage"):
            process = stage if round_.victim == "stage" else run.process
            if process is None or not run.is_alive():
                round_.problems.append(NO_VICTIM)
            else:
                process.kill()
            return
        service = getattr(self._stack, round_.victim)
        kill_tree(psutil.Process(service.process.pid))
        service.kill()

    def _restart(self) -> None:
        """Start the servers that have ended, as compose.yaml does."""
        for service in (self._stack.postgres, self._stack.mlflow, self._stack.prefect, self._stack.worker):
            if service.process is None or service.process.poll() is not None:
                service.kill()
                service.start()

    def _let_end(self, run: Run) -> list[str]:
        """Wait until the rest of the run has ended; return the problem if it does not end."""
        run.wait_until(lambda: run.process is None, PATIENCE)
        if not run.is_alive():
            return []
        assert run.process is not None
        kill_tree(run.process)
        return [f"the run has not ended within {PATIENCE:.0f} s"]

    def _ending(self, run: Run) -> str:
        if run.phase() == "end":
            return "completed"
        return "failed" if "Finished in state Failed" in run.output or "error: " in run.output else "died"

    def _run_again(self, number: int) -> dict[str, Any]:
        """Run the recovery command; return its summary, or its error."""
        log = self._folder / "logs" / f"recovery-{number}.log"
        process = self._stack.start("run", "--promotion", "auto", "--json", log=log)
        if process.wait(timeout=PATIENCE):
            return {"error": f"`diptych run` ended with {process.returncode}: {log.read_text()[-1000:]}"}
        try:
            return dict(json.loads(log.with_suffix(".out").read_text()))
        except ValueError as error:
            return {"error": f"the output of `diptych run --json` is no JSON: {error}"}


def say(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def campaign(folder: Path, rounds: int, seed: int) -> tuple[list[Round], list[str]]:
    """Perform the rounds; return them, and the problems before the first and after the last."""
    planned = plan(rounds, random.Random(seed))
    with running(folder) as stack:
        performed = Campaign(stack, folder, seed)
        wrong = performed.begin()
        say(HEAD)
        for index, round_ in enumerate(planned):
            performed.perform(round_)
            while round_.problems == [NO_VICTIM]:
                # The length of phases depends on the machine: this random moment was too late.
                say(f"{round_.line()}: {NO_VICTIM}, once more")
                planned[index] = round_ = Round(round_.number + 1000, round_.victim, round_.target, round_.drop)
                performed.perform(round_)
            say(round_.line())
            for problem in round_.problems:
                say(f"    {problem}")
        return planned, wrong + performed.end()


def main() -> None:
    """Perform the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="a new folder, which is kept; default: a temporary one")
    parser.add_argument("--json", action="store_true", help="print the rounds as JSON")
    options = parser.parse_args()
    begun = time.monotonic()
    # SIGTERM becomes an exit, so that the servers are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory(prefix="kills-", ignore_cleanup_errors=True) as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        performed, wrong = campaign(folder.resolve(), options.rounds, options.seed)
    recovered = sum(round_.recovered for round_ in performed)
    for problem in wrong:
        say(f"before or after the rounds: {problem}")
    if options.json:
        print(json.dumps([asdict(round_) for round_ in performed], indent=2))
    else:
        print("\n".join([HEAD, *(round_.line() for round_ in performed)]))
    slowest = max((round_.recover_s for round_ in performed), default=0.0)
    took = time.monotonic() - begun
    say(f"{recovered} of {len(performed)} recovered, the slowest in {slowest:.0f} s; {took:.0f} s in all")
    sys.exit(recovered < len(performed) or bool(wrong))


if __name__ == "__main__":
    main()
