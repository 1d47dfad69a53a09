"""`diptych evaluate`: other models' embeddings have the same metrics, and what does not fit is refused in words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from diptych.cli.main import cli
from diptych.errors import DiptychError
from diptych.retrieval.evaluation import evaluate_embeddings
from diptych.retrieval.metrics import retrieval_metrics

Invoke = Callable[..., Any]
OWN = np.array([0, 2, 1, 2, 0, 3])
"""Captions in no order."""


def embeddings() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    image = generator.normal(size=(4, 8)).astype(np.float32)
    return image, (image[OWN] + 0.8 * generator.normal(size=(6, 8))).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Embeddings, captions and images of a small gallery."""
    for name, rows in zip(("image", "text"), embeddings(), strict=True):
        np.save(tmp_path / f"{name}.npy", rows)
    write_captions(tmp_path)
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.new("RGB", (60, 40), (60 * number, 90, 90)).save(tmp_path / "images" / f"{number}.jpg")
    return tmp_path


def write_captions(folder: Path, **changes: Any) -> None:
    content = {
        "images": [{"id": 10 + number, "file_name": f"{number}.jpg"} for number in range(4)],
        "annotations": [
            {"id": number, "image_id": 10 + int(own), "caption": f"words {number}"} for number, own in enumerate(OWN)
        ],
    }
    (folder / "captions.json").write_text(json.dumps({**content, **changes}))


def run(folder: Path, *options: str) -> Any:
    files = [f"--image-embeddings={folder}/image.npy", f"--text-embeddings={folder}/text.npy"]
    return CliRunner().invoke(cli, ["evaluate", *files, f"--captions={folder}/captions.json", *options])


def refused(folder: Path, *options: str) -> str:
    result = run(folder, *options)
    assert isinstance(result.exception, DiptychError)
    return str(result.exception)


def test_metrics_are_those_of_the_directions(folder: Path) -> None:
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in embeddings())
    assert json.loads(run(folder, "--json").stdout) == {"embeddings": retrieval_metrics(image, text, OWN)}


@pytest.mark.parametrize("scale", [1e-170, 1e160, 1e-30, 1e30])
def test_no_magnitude_is_too_large_or_too_small(folder: Path, scale: float) -> None:
    expected = run(folder, "--json").stdout
    for name, rows in zip(("image", "text"), embeddings(), strict=True):
        np.save(folder / f"{name}.npy", rows.astype(np.float64) * scale)
    assert run(folder, "--json").stdout == expected


def test_other_byte_orders_are_read(folder: Path) -> None:
    expected = run(folder, "--json").stdout
    np.save(folder / "image.npy", embeddings()[0].astype(">f4"))
    assert run(folder, "--json").stdout == expected


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


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_lengths_and_precision_do_not_matter(folder: Path, kind: type) -> None:
    expected = run(folder, "--json").stdout
    image, text = embeddings()
    np.save(folder / "image.npy", (image * np.arange(1, 5)[:, None]).astype(kind))
    np.save(folder / "text.npy", (3 * text).astype(kind))
    assert run(folder, "--json").stdout == expected


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


def test_a_gallery_of_5000_has_folds() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(5_000, 4, generator=generator)
    evaluation = evaluate_embeddings(image, image + 0.1, np.arange(5_000))
    assert evaluation.metrics["embeddings"]["folds_1k"]["rsum"] > evaluation.metrics["embeddings"]["rsum"]


def test_rows_must_be_as_many_as_are_listed(folder: Path) -> None:
    np.save(folder / "text.npy", embeddings()[1][:5])
    assert "text.npy has 5 rows, but" in refused(folder)
    assert "lists 6 captions" in refused(folder)


def test_both_sides_must_have_the_same_number_of_dimensions(folder: Path) -> None:
    text = np.load(folder / "text.npy")
    np.save(folder / "text.npy", text[:, :-1])
    dimensions = text.shape[1]
    assert f"image.npy has {dimensions} dimensions and " in (message := refused(folder))
    assert f"text.npy {dimensions - 1}: both must have the same number" in message


def test_an_embedding_without_direction_is_refused(folder: Path) -> None:
    image = embeddings()[0]
    image[2] = 0
    np.save(folder / "image.npy", image)
    assert "image embedding 2 is zero" in refused(folder)


def test_nan_is_refused_even_beside_a_row_of_zeros(folder: Path) -> None:
    text = embeddings()[1]
    text[4, 1] = np.nan
    np.save(folder / "text.npy", text)
    assert "text embedding 4 holds NaN or infinity" in refused(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.arange(8).reshape(4, 2), "not int64 (4, 2)"),
        (np.ones(4, np.float32), "not float32 (4,)"),
        (np.array([{"a": 1}], dtype=object), "is no .npy file of numbers"),
        (np.ones((4, 2), np.longdouble), "not float128 (4, 2)"),
    ],
)
def test_what_is_no_matrix_of_numbers_is_refused(folder: Path, content: np.ndarray, message: str) -> None:
    np.save(folder / "image.npy", content)
    assert message in refused(folder)


@pytest.mark.parametrize("content", [b"", b"not numpy", b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'"])
def test_a_damaged_file_is_refused_by_name(folder: Path, content: bytes) -> None:
    (folder / "image.npy").write_bytes(content)
    assert "image.npy is no .npy file" in refused(folder)


def test_a_missing_file_is_refused_by_name(folder: Path) -> None:
    (folder / "image.npy").unlink()
    assert "image.npy cannot be read: No such file" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 10, "file_name": "a.jpg"}] * 4}, "repeated: 10"),
        ({"images": [{"id": 10, "file_name": "a.jpg"}]}, "captions of images that it does not list: annotation 1"),
        (
            {"images": [{"id": 10 + number, "file_name": f"{number}.jpg"} for number in range(5)]},
            "images without captions, for which nothing can be relevant: 14 (4.jpg)",
        ),
        ({"images": [], "annotations": []}, "lists no images"),
    ],
)
def test_captions_that_contradict_themselves_are_refused(folder: Path, changes: dict[str, Any], message: str) -> None:
    write_captions(folder, **changes)
    assert message in refused(folder)


def test_a_picture_that_is_damaged_is_refused_by_name(folder: Path) -> None:
    for number in range(4):
        (folder / "images" / f"{number}.jpg").write_bytes(b"no picture")
    assert "jpg cannot be shown" in refused(folder, f"--report={folder}/r.html", f"--images={folder}/images")
    assert not (folder / "r.html").exists()
