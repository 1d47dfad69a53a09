"""`diptych advise`: a params.yaml for the dataset, with reasons, and measured where it is asked for."""

from __future__ import annotations

import logging
from contextlib import chdir, nullcontext
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.console import print_result
from diptych.project.environment import enter
from diptych.project.params import replace_params
from diptych.project.processes import holding

if TYPE_CHECKING:
    from diptych.advice.measuring import Measured
    from diptych.advice.recipe import Proposal

log = logging.getLogger(__name__)


@click.command()
@click.option(
    "--minutes", default=45, show_default=True, type=click.IntRange(min=1), help="Time that a whole run may take."
)
@click.option(
    "--measure",
    "measured_minutes",
    metavar="MINUTES",
    type=click.IntRange(min=1),
    help="Train the proposal and alternatives for about as long, on images that test does not hold, and take the best.",
)
@click.option("--write", is_flag=True, help="Write the proposal to params.yaml.")
@click.option("--json", "as_json", is_flag=True, help="Print the proposal as JSON.")
def advise(minutes: int, measured_minutes: int | None, write: bool, as_json: bool) -> None:
    """Propose a params.yaml for the dataset in data/, with the reason of each choice.

    It looks at the dataset, at the pretrained towers in weights/, and at this machine's speed. Without --write nothing
    is changed.
    """
    workspace = enter()
    holds = write or measured_minutes is not None
    with holding(workspace, "diptych advise") if holds else nullcontext(), chdir(workspace.root):
        from diptych.advice.facts import find_towers, read_facts
        from diptych.advice.fitting import fit
        from diptych.advice.measuring import measure
        from diptych.advice.recipe import propose
        from diptych.advice.timing import measure_speed
        from diptych.model.device import prepare

        facts, towers = read_facts(workspace.data), find_towers(workspace.root / "weights")
        presets = {path.stem: path.read_text(encoding="utf-8") for path in workspace.presets.glob("*.yaml")}
        proposal = propose(facts, towers, presets)
        device = prepare("auto", None)
        proposal, needed = fit(
            proposal, facts, towers, minutes, lambda params, tokens: measure_speed(params, tokens, device)
        )
        measured: list[Measured] = []
        if measured_minutes is not None:
            best, measured = measure(workspace, proposal, measured_minutes, device)
            proposal = proposal.with_choices(*best.changes)
        if write:
            replace_params(workspace, proposal.to_yaml().encode())
    content: dict[str, Any] = {
        "preset": proposal.preset,
        "choices": {choice.key: {"value": choice.value, "reason": choice.reason} for choice in proposal.choices},
        "notes": list(proposal.notes),
        "training_minutes": needed,
        "measured": [one.to_json() for one in measured],
        "written": write,
    }
    print_result(content, _describe(proposal, needed, measured, write), as_json)


def _describe(proposal: Proposal, needed: float, measured: list[Measured], written: bool) -> str:
    lines = [f"The preset {proposal.preset}, with"]
    for choice in proposal.choices:
        lines += [f"  {choice.key}: {choice.shown}", f"      {choice.reason}"]
    lines += ["", f"Training the towers takes about {max(1, round(needed))} minute(s) on this machine."]
    lines += proposal.notes
    if measured:
        lines += ["", "Measured on images of train and val that the recipes had not seen (RSUM, qb_norm):"]
        width = max(len(one.name) for one in measured)
        for one in measured:
            gain = f"  {one.gain.describe()}" if one.gain else ""
            lines.append(f"  {one.name:<{width}}  {one.rsum:6.1f}  {one.folds} fold(s), {one.seconds:.0f} s{gain}")
    lines.append("")
    lines.append("params.yaml has it. Train with `diptych run`." if written else "`diptych advise --write` takes it.")
    return "\n".join(lines)
