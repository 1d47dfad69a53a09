"""`diptych evaluate`: the metrics, the table and the report for another model's embeddings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from external_gallery import OWN, embeddings, write_gallery

from diptych.cli.main import cli
from diptych.retrieval.metrics import retrieval_metrics

pytestmark = pytest.mark.slow


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_gallery(tmp_path)


def run(folder: Path, *options: str) -> Any:
    files = [f"--image-embeddings={folder}/image.npy", f"--text-embeddings={folder}/text.npy"]
    return CliRunner().invoke(cli, ["evaluate", *files, f"--captions={folder}/captions.json", *options])


def test_metrics_are_those_of_the_directions(folder: Path) -> None:
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in embeddings())
    assert json.loads(run(folder, "--json").stdout) == {"embeddings": retrieval_metrics(image, text, OWN)}


def test_figures_are_told_even_if_the_report_cannot_be_written(folder: Path) -> None:
    result = run(folder, f"--report={folder}/captions.json/r.html")
    assert "RSUM: embeddings" in result.stdout
    assert "r.html cannot be written" in str(result.exception)


def test_what_is_evaluated_is_not_overwritten(folder: Path) -> None:
    result = run(folder, f"--report={folder}/image.npy")
    assert result.exit_code == 2
    assert "would overwrite" in result.stderr


def test_inputs_of_one_name_have_a_digest_each(folder: Path) -> None:
    (folder / "b").mkdir()
    (folder / "text.npy").rename(folder / "b" / "image.npy")
    files = [f"--image-embeddings={folder}/image.npy", f"--text-embeddings={folder}/b/image.npy"]
    more = [f"--captions={folder}/captions.json", f"--report={folder}/r.html"]
    assert CliRunner().invoke(cli, ["evaluate", *files, *more]).exit_code == 0
    assert len(set(re.findall(r"<code>([0-9a-f]{64})</code>", (folder / "r.html").read_text()))) == 3


def test_the_table_tells_figures_chance_and_intervals(folder: Path) -> None:
    result = run(folder)
    assert "captions.json, 4 images and 6 captions" in result.stdout
    assert re.search(r"embeddings Text → image +\d", result.stdout)
    assert re.search(r"chance +Image → text", result.stdout)
    assert re.search(r"RSUM: embeddings [\d.]+ \([\d.]+ to [\d.]+\)", result.stdout)


def test_the_report_shows_queries_where_there_are_pictures(folder: Path) -> None:
    plain, shown = folder / "plain.html", folder / "shown.html"
    assert run(folder, f"--report={plain}").exit_code == 0
    assert run(folder, f"--report={shown}", f"--images={folder}/images").exit_code == 0
    assert "Caption → images" not in plain.read_text()
    page = shown.read_text()
    assert "Caption → images" in page
    assert "words 3" in page
    assert "re-ranking" not in page
    assert page.count("data:image/jpeg") > 4


def test_pictures_need_a_report(folder: Path) -> None:
    result = run(folder, f"--images={folder}/images")
    assert result.exit_code == 2
    assert "--report" in result.stderr


def test_a_picture_that_is_damaged_is_refused_by_name(folder: Path) -> None:
    for number in range(4):
        (folder / "images" / f"{number}.jpg").write_bytes(b"no picture")
    result = run(folder, f"--report={folder}/r.html", f"--images={folder}/images")
    assert "jpg cannot be shown" in str(result.exception)
    assert not (folder / "r.html").exists()
