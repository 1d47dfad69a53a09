"""`diptych weights`: which towers are fetched, and what to write into params.yaml."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command import diptych

from diptych.cli import weights
from diptych.data.offline_weights import TEXT_TOWER, Tower
from diptych.project.workspace import Workspace


@pytest.fixture(autouse=True)
def no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Towers that are fetched at once; their folders stay empty."""

    def fetch(folder: Path, image_tower: str) -> list[Tower]:
        return [Tower(folder / image_tower, fetched=True), Tower(folder / TEXT_TOWER.name, fetched=False)]

    monkeypatch.setattr(weights, "fetch_towers", fetch)


@pytest.mark.parametrize(
    ("arguments", "name", "image_size"),
    [
        ((), "efficientnet-lite0", 224),
        (("--image-tower", "efficientnet-lite1"), "efficientnet-lite1", 240),
        (("--image-tower", "efficientnet-lite2"), "efficientnet-lite2", 260),
    ],
)
def test_the_message_says_what_was_fetched_and_what_to_write_into_params(
    inside: Workspace, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], name: str, image_size: int
) -> None:
    assert diptych("weights", "offline", *arguments) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"./weights/{name} fetched",
        "./weights/all-minilm-l6-v2 is there already",
        "Write into params.yaml:",
        f"  model.image_tower.pretrained: ./weights/{name}",
        "  model.text_tower.pretrained: ./weights/all-minilm-l6-v2",
        f"  preprocess.image_size: {image_size}",
    ]


def test_the_folders_and_the_image_size_are_printed_as_json(
    inside: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diptych("weights", "offline", "--image-tower", "efficientnet-lite1", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "image_tower": str(inside.root / "weights/efficientnet-lite1"),
        "text_tower": str(inside.root / "weights/all-minilm-l6-v2"),
        "image_size": 240,
    }


def test_an_unknown_image_tower_is_refused(inside: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert diptych("weights", "offline", "--image-tower", "efficientnet-lite3") == 2
    assert "efficientnet-lite2" in capsys.readouterr().err
