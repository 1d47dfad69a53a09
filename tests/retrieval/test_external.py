"""Galleries of other models' embeddings: what fits is read, and what does not fit is refused in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from external_gallery import embeddings, write_captions, write_gallery

from diptych.errors import DiptychError
from diptych.retrieval.evaluation import evaluate_embeddings
from diptych.retrieval.external import ExternalGallery


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_gallery(tmp_path)


def metrics(folder: Path) -> dict[str, Any]:
    """The metrics of the embeddings in a folder."""
    gallery = ExternalGallery(folder / "captions.json")
    embedded = gallery.read_embeddings(folder / "image.npy", folder / "text.npy")
    return evaluate_embeddings(*embedded, gallery.image_of_caption).metrics["embeddings"]


def refused(folder: Path) -> str:
    with pytest.raises(DiptychError) as caught:
        metrics(folder)
    return str(caught.value)


@pytest.mark.parametrize("scale", [1e-170, 1e160, 1e-30, 1e30])
def test_no_magnitude_is_too_large_or_too_small(folder: Path, scale: float) -> None:
    expected = metrics(folder)
    for name, rows in zip(("image", "text"), embeddings(), strict=True):
        np.save(folder / f"{name}.npy", rows.astype(np.float64) * scale)
    assert metrics(folder) == expected


def test_other_byte_orders_are_read(folder: Path) -> None:
    expected = metrics(folder)
    np.save(folder / "image.npy", embeddings()[0].astype(">f4"))
    assert metrics(folder) == expected


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_lengths_and_precision_do_not_matter(folder: Path, kind: type) -> None:
    expected = metrics(folder)
    image, text = embeddings()
    np.save(folder / "image.npy", (image * np.arange(1, 5)[:, None]).astype(kind))
    np.save(folder / "text.npy", (3 * text).astype(kind))
    assert metrics(folder) == expected


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
