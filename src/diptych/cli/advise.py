"""`diptych advise`: a params.yaml for the dataset, with reasons, and measured where it is asked for."""

from __future__ import annotations

from contextlib import chdir
from typing import TYPE_CHECKING, Any

import click

from diptych.cli.console import print_result
from diptych.config import Params, load_params
from diptych.errors import DiptychError
from diptych.files import atomic_path, remove
from diptych.project.environment import enter
from diptych.project.params import read_params, refuse_lost_edits
from diptych.project.processes import holding

if TYPE_CHECKING:
    from diptych.advice.measuring import Measured
    from diptych.advice.recipe import Proposal
    from diptych.project.workspace import Workspace


@click.command()
@click.option(
    "--minutes", default=45, show_default=True, type=click.IntRange(min=1), help="Time that a whole run may take."
)
@click.option(
    "--measure",
    "measured_minutes",
    metavar="MINUTES",
    type=click.IntRange(min=1),
    help="Train the proposal and alternatives for about as long, on images of train and val, and take the best.",
)
@click.option("--write", is_flag=True, help="Make the proposal the params.yaml.")
@click.option("--json", "as_json", is_flag=True, help="Print the proposal as JSON.")
def advise(minutes: int, measured_minutes: int | None, write: bool, as_json: bool) -> None:
    """Propose a params.yaml for the dataset in data/, with the reason of each choice.

    The choices depend on the dataset, on the pretrained towers in weights/, and on the speed of this machine. The
    proposal is in .diptych/advice/params.yaml; with --write it replaces params.yaml. Seed, device, registry, gate and
    limits of validation stay those of the present params.yaml.
    """
    workspace = enter()
    # A run at the same time would make the machine look slow.
    with holding(workspace, "diptych advise"), chdir(workspace.root):
        _make_room(workspace)
        if write:
            refuse_lost_edits(workspace)
        proposal, needed, measured = _advise(workspace, minutes, measured_minutes)
        for path in (workspace.advised, *([workspace.params] if write else [])):
            with atomic_path(path) as temporary:
                temporary.write_text(proposal.to_yaml(), encoding="utf-8")
    content: dict[str, Any] = {
        "preset": proposal.preset,
        "choices": {choice.key: {"value": choice.value, "reason": choice.reason} for choice in proposal.choices},
        "notes": list(proposal.notes),
        "training_minutes": needed,
        "measured": [one.to_json() for one in measured],
        "written": write,
    }
    print_result(content, _describe(proposal, needed, measured, write), as_json)


def _make_room(workspace: Workspace) -> None:
    """Check that the proposal can be written, and remove what a killed measurement has left."""
    from diptych.advice.measuring import measuring_folder

    folder = workspace.advised.parent
    if (folder.exists() and not folder.is_dir()) or workspace.advised.is_dir():
        path = workspace.advised if folder.is_dir() else folder
        raise DiptychError(f"{path} is where the proposal is written, and is something else: remove it.")
    remove(measuring_folder(workspace))


def _read_preset(workspace: Workspace, name: str) -> Params:
    path = workspace.presets / f"{name}.yaml"
    try:
        return load_params(path)
    except DiptychError as error:
        raise DiptychError(f"{error} Advice begins from this preset: `git checkout {path}` brings it back.") from None


def _advise(workspace: Workspace, minutes: int, measured_minutes: int | None) -> tuple[Proposal, float, list[Measured]]:
    """Return the proposal, the minutes that training its towers takes, and what was measured."""
    from diptych.advice.facts import find_towers, read_facts
    from diptych.advice.fitting import fit
    from diptych.advice.measuring import best_of, measure
    from diptych.advice.recipe import FROM_SCRATCH, PRETRAINED, propose, train_images
    from diptych.advice.timing import measure_speed
    from diptych.model.device import prepare

    facts, towers = read_facts(workspace.data), find_towers(workspace.root / "weights")
    presets = {name: _read_preset(workspace, name) for name in (PRETRAINED, FROM_SCRATCH)}
    present = read_params(workspace) if workspace.params.exists() else presets[FROM_SCRATCH]
    proposal = propose(facts, towers, presets, present)
    params, images = proposal.params, train_images(facts, proposal.params)
    device = prepare(params.device, params.threads)
    speed = measure_speed(params, proposal.caption_tokens, device)
    proposal = fit(proposal, speed, images, minutes)
    measured: list[Measured] = []
    if measured_minutes is not None:
        _require_time(measured_minutes, speed.minutes(proposal.params, images))
        measured = measure(workspace, proposal, measured_minutes, device)
        proposal = proposal.with_choices(*best_of(measured).changes)
    return proposal, speed.minutes(proposal.params, images), measured


def _require_time(minutes: int, needed: float) -> None:
    """Refuse to measure in less time than a single training of the proposal takes."""
    if minutes < needed:
        raise DiptychError(
            f"A training of the proposal takes about {needed:.0f} minutes here, so --measure {minutes} could compare "
            f"it with nothing. Allow --measure {2 * round(needed)} at least."
        )


def _describe(proposal: Proposal, needed: float, measured: list[Measured], written: bool) -> str:
    lines = [f"The preset {proposal.preset}, {proposal.reason}, with"]
    for choice in proposal.choices:
        lines += [f"  {choice.key}: {choice.shown}", f"      {choice.reason}"]
    lines += [
        "",
        f"Training the towers takes {_minutes(needed)} on this machine; the other stages come on top.",
        *proposal.notes,
    ]
    if measured:
        lines += ["", *_describe_measured(measured)]
    done = "It is params.yaml now. Train with `diptych run`."
    todo = "To take it: `cp .diptych/advice/params.yaml params.yaml`; then `diptych run`."
    return "\n".join([*lines, "", done if written else todo])


def _minutes(needed: float) -> str:
    minutes = round(needed)
    return f"about {minutes} minutes" if minutes > 1 else "about a minute"


def _describe_measured(measured: list[Measured]) -> list[str]:
    from diptych.advice.measuring import ENOUGH_FOLDS, best_of

    lines = ["Measured on images of train and val that no recipe had seen (RSUM of the towers, qb_norm):"]
    width = max(len(one.name) for one in measured)
    for one in measured:
        if one.failure or not one.trials:
            lines.append(f"  {one.name:<{width}}  {one.failure or 'not tried: there was no time'}")
            continue
        figures = " ".join(f"{trial.rsum:.1f}" for trial in one.trials)
        gain = f"  gain {one.gain.describe()}" if one.gain else ""
        seconds = sum(trial.seconds for trial in one.trials) / len(one.trials)
        lines.append(f"  {one.name:<{width}}  {figures}{gain}  {seconds:.0f} s a training")
    best = best_of(measured)
    if best.gain:
        return [*lines, f"Taken: {best.name}."]
    few = [one.name for one in measured if one.gain and one.gain.low > 0 and len(one.trials) < ENOUGH_FOLDS]
    reason = ""
    if few or max(len(one.trials) for one in measured) < ENOUGH_FOLDS:
        of_what = f" of {', '.join(few)}" if few else ""
        reason = f"; {ENOUGH_FOLDS} folds at least can show that{of_what}, so allow more with --measure"
    return [*lines, f"The proposal stays: no alternative is clearly better{reason}."]
