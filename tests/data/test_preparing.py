"""Pixels for the trainer, and the cache that keeps them."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from preparation import Project

from diptych.config import Preprocess
from diptych.data import image_metadata, images, prepared_shards, preparing, shards
from diptych.errors import DiptychError


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three images a shard."""
    monkeypatch.setattr(shards, "MAX_MEMBERS", 3)


@pytest.fixture
def project(tmp_path: Path, photo: Callable[..., bytes], small_shards: None) -> Project:
    project = Project(tmp_path, photo)
    project.add(*range(7))
    return project


@pytest.mark.parametrize("workers", [1, 2])
def test_every_image_has_its_pixels_where_the_table_says(project: Project, workers: int) -> None:
    _, output = project.prepare(workers=workers)
    table = pd.read_parquet(output / "images.parquet")
    assert table["image_id"].tolist() == list(range(7))
    for shard, row, name in zip(table["shard"], table["row"], table["file_name"], strict=True):
        pixels = np.load(output / "images" / f"{shard}.npy")
        assert np.array_equal(pixels[row], project.expected(name))


def test_images_of_a_shard_keep_the_manifests_order_when_shards_are_mixed(project: Project) -> None:
    manifest = project.manifest.iloc[[5, 0, 3, 2]].reset_index(drop=True)
    _, output = project.prepare(manifest)
    table = pd.read_parquet(output / "images.parquet")
    assert table["image_id"].tolist() == [5, 0, 3, 2]
    assert table["shard"].tolist() == ["images-00001", "images-00000"] * 2
    assert table["row"].tolist() == [0, 0, 1, 1]
    assert np.array_equal(np.load(output / "images" / "images-00001.npy")[1], project.expected("003.png"))


def test_a_second_run_takes_everything_from_the_cache(project: Project) -> None:
    first, second = project.prepare(), project.prepare()
    assert (first[0], second[0]) == (0, 3)
    for path in (first[1] / "images").iterdir():
        assert path.read_bytes() == (second[1] / "images" / path.name).read_bytes()


def test_a_grown_dataset_costs_only_its_new_shards(project: Project) -> None:
    project.prepare()
    project.add(7, 8)
    assert project.prepare()[0] == 3


@pytest.mark.parametrize("settings", [Preprocess(image_size=48), Preprocess(image_size=32, resize="crop")])
def test_other_settings_do_not_use_the_cache(project: Project, settings: Preprocess) -> None:
    project.prepare()
    assert project.prepare(settings=settings)[0] == 0


@pytest.mark.parametrize("module", [images, image_metadata])
def test_other_code_that_decodes_does_not_use_the_cache(
    project: Project, module: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.add(0, 1)
    project.prepare()
    (tmp_path / "other.py").write_text("# other code")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "other.py"))
    assert project.prepare()[0] == 0


def test_a_quarantined_image_renews_only_its_shard(project: Project) -> None:
    project.prepare()
    assert project.prepare(project.manifest.drop(index=4).reset_index(drop=True))[0] == 2


@pytest.mark.parametrize("damage", ["cut", "longer", "nonsense", "empty", "other shape", "zip", "order"])
def test_a_damaged_cache_file_is_made_anew_with_a_warning(
    project: Project, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, sound = project.prepare()
    victim = sorted(project.cache.glob("*.npy"))[0]
    content = victim.read_bytes()
    victim.unlink()
    damaged = {"cut": content[:-1], "longer": content + b"x", "nonsense": b"nonsense", "empty": b""}
    damaged |= {"zip": b"PK\3\4" + content[4:], "order": content.replace(b"False", b"True ")}
    if damage == "other shape":
        np.save(victim, np.zeros((1, 2), np.uint8))
    else:
        victim.write_bytes(damaged[damage])
    with caplog.at_level(logging.WARNING):
        reused, output = project.prepare()
    assert reused == 2
    assert victim.name in caplog.text
    for path in (output / "images").iterdir():
        assert path.read_bytes() == (sound / "images" / path.name).read_bytes()


def test_cache_and_output_share_their_bytes_on_disk(project: Project) -> None:
    _, output = project.prepare()
    assert (output / "images" / "images-00000.npy").stat().st_nlink == 2


def test_without_hard_links_the_pixels_are_copied(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    _, output = project.prepare()
    assert np.array_equal(np.load(output / "images" / "images-00000.npy")[0], project.expected("000.png"))


def test_the_cache_forgets_what_the_last_runs_did_not_use(project: Project) -> None:
    sizes = [32, 40, 48, 56]
    for size in sizes:
        project.prepare(settings=Preprocess(image_size=size))
    assert len(list(project.cache.glob("*.npy"))) == 3 * preparing.CACHED_RUNS
    assert project.prepare(settings=Preprocess(image_size=40))[0] == 3
    assert project.prepare(settings=Preprocess(image_size=32))[0] == 0


@pytest.mark.parametrize("record", ["[nonsense", "[5]", "[null]", "{}"])
def test_a_damaged_record_of_runs_is_no_obstacle(project: Project, record: str) -> None:
    project.prepare()
    (project.cache / "runs.json").write_text(record)
    assert project.prepare()[0] == 3


def test_an_image_that_changed_since_validation_is_named(project: Project, tmp_path: Path) -> None:
    manifest = project.manifest
    shard = tmp_path / "data" / "images-00001.tar"
    content = bytearray(shard.read_bytes())
    start = int(manifest.loc[4, "offset"])
    content[start : start + 8] = bytes(8)
    shard.write_bytes(content)
    with pytest.raises(DiptychError, match=r"004\.png.*images-00001.*diptych run --force"):
        project.prepare(manifest)


def test_a_failure_leaves_finished_shards_and_nothing_half_written(project: Project, tmp_path: Path) -> None:
    manifest = project.manifest
    (tmp_path / "data" / "images-00002.tar").unlink()
    with pytest.raises(DiptychError, match="images-00002"):
        project.prepare(manifest)
    assert [path.suffix for path in project.cache.iterdir()] == [".npy", ".npy"]


def test_leftovers_of_a_killed_run_are_removed(project: Project) -> None:
    project.cache.mkdir()
    (project.cache / ".abc.npy.tmp").write_bytes(b"half")
    project.prepare()
    assert not list(project.cache.glob(".*.tmp"))


def test_a_killed_worker_leaves_nothing_half_written(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepared_shards, "_open", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DiptychError, match="killed"):
        project.prepare(workers=2)
    assert not list(project.cache.iterdir())


def test_a_full_disk_is_said(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DiptychError, match="No space left"):
        project.prepare()
    assert not list(project.cache.iterdir())


def test_stretching_and_cropping_differ_on_oblong_images(project: Project) -> None:
    _, stretched = project.prepare()
    _, cropped = project.prepare(settings=Preprocess(image_size=32, resize="crop"))
    image = Image.fromarray(np.load(stretched / "images" / "images-00000.npy")[0])
    assert image.size == (32, 32)
    assert not np.array_equal(np.asarray(image), np.load(cropped / "images" / "images-00000.npy")[0])
