"""Work by a cluster: two nodes of Ray on this machine."""

from __future__ import annotations

import json
import re
import shutil
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from cluster_work import die_at_two, die_once, refuse, square, variable, wait_for
from ray_nodes import joined, nodes
from searching import MODEL, write_photos
from tiny import make_model, open_prepared, write_prepared
from tiny_model import write_tiny_model
from waiting import comes_true

from diptych import Retriever
from diptych.config import Preprocess
from diptych.data import cluster, parallel, shards
from diptych.data.captions import read_dataset
from diptych.data.cluster import ONE_CORE, Need, describe, in_cluster
from diptych.data.prepared import PreparedSplit
from diptych.data.preparing import prepare_images
from diptych.data.scenes.drawing import write_scenes
from diptych.data.sending import send_images
from diptych.errors import DiptychError
from diptych.files import file_sha256
from diptych.model.dual_encoder import DualEncoder
from diptych.project.dvc_remote import SENT
from diptych.serving import indexing
from diptych.serving.indexing import IndexSummary, update_index
from diptych.serving.sources import DatasetSource, FilesSource, Source
from diptych.serving.store import Store, table_name
from diptych.training.features import FeatureCache
from diptych.validation.scan import scan_images

pytestmark = pytest.mark.slow
__all__ = ["joined", "nodes"]


def results(work: Any, tasks: Any, *, inputs: Sequence[Path] = (), need: Need = ONE_CORE) -> list[Any]:
    return list(in_cluster(work, tasks, name="shard {}".format, inputs=inputs, need=need))


def scanned_and_prepared(data: Path, output: Path) -> dict[str, str]:
    """Scan and prepare a dataset; return the SHA-256 of each file."""
    table = scan_images(data, read_dataset(data).images, max_pixels=10**6, workers=2)
    settings = Preprocess(image_size=48, max_tokens=16)
    prepare_images(data, table, output, cache=output / "cache", settings=settings, workers=2)
    table.to_parquet(output / "scanned.parquet")
    return {path.name: file_sha256(path) for path in sorted(output.rglob("*")) if path.suffix in (".npy", ".parquet")}


def stored_features(folder: Path, model: DualEncoder, splits: Sequence[PreparedSplit]) -> dict[str, str]:
    """Store the features of frozen towers; return the SHA-256 of each file."""
    cache = FeatureCache(folder, limit_gib=1.0, device=torch.device("cpu"), precision="no")
    cache.images(model.image_tower, splits)
    cache.texts(model.text_tower, splits)
    return {path.name: file_sha256(path) for path in folder.iterdir()}


def indexed(folder: Path, source: Source, retriever: Retriever) -> tuple[pa.Table, IndexSummary]:
    """Index a collection; return its rows and the outcome."""
    store = Store(str(folder / "store"), folder / "local", folder)
    summary = update_index(store, "photos", source, MODEL, lambda: retriever)
    return store.database("photos").open_table(table_name(MODEL)).to_arrow(), summary


@pytest.fixture
def retriever(tmp_path: Path) -> Retriever:
    return Retriever.load(write_tiny_model(tmp_path / "model"), "cpu", batch_size=4)


def test_results_come_in_the_order_of_the_tasks(nodes: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    assert results(square, range(50)) == [number**2 for number in range(50)]


def test_what_a_dead_worker_did_is_done_again(joined: Any, tmp_path: Path) -> None:
    assert results(partial(die_once, tmp_path), range(10)) == list(range(10))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_task_that_kills_its_worker_each_time_is_named(joined: Any) -> None:
    with pytest.raises(DiptychError, match="The worker of shard 2 died 3 times"):
        results(die_at_two, range(4))


def test_what_a_task_raises_reaches_the_caller_with_its_node(joined: Any) -> None:
    with pytest.raises(DiptychError, match=rf"no 0 \(on the node {socket.gethostname()}\)"):
        results(refuse, range(3))


def test_a_task_that_no_node_can_hold_is_refused(joined: Any) -> None:
    with pytest.raises(DiptychError, match=r"No node of the cluster has 1 CPU\(s\) and 1 GPU\(s\)"):
        results(square, range(3), need=Need(gpus=1))


def test_the_nodes_are_described(joined: Any) -> None:
    assert re.fullmatch(r"\d node\(s\) with \d CPU\(s\) and 0 GPU\(s\)", describe([]))


def test_nodes_with_other_packages_are_refused(joined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "version", lambda name: f"{name} of here")
    with pytest.raises(DiptychError, match=r"The node .* has imagehash 4.*, and the one that .* has imagehash of here"):
        results(square, range(3))


def test_nodes_that_see_other_files_are_refused(joined: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "captions.json"
    path.write_text("{}")
    assert results(square, [2], inputs=[path]) == [4]
    monkeypatch.setattr(cluster, "file_sha256", lambda path: "of here")
    with pytest.raises(DiptychError, match=r"The node .* does not see the same .*captions\.json"):
        results(square, [2], inputs=[path])


def test_what_a_dead_node_did_is_done_again(joined: Any, tmp_path: Path) -> None:
    third = joined.add_node(num_cpus=2)
    work = in_cluster(partial(wait_for, tmp_path), range(12), name=str, inputs=[])
    assert next(work) == 0
    # All places are taken: some tasks are on the third node, and wait there.
    waiting = [tmp_path / f"{number}" for number in range(1, 7)]
    assert comes_true(lambda: all(path.exists() for path in waiting))
    joined.remove_node(third, allow_graceful=False)
    (tmp_path / "go").touch()
    assert list(work) == list(range(1, 12))


def test_an_address_where_nothing_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(DiptychError, match=rf"RAY_ADDRESS is {address}, where nothing answers"):
            results(square, range(3))


def test_images_are_scanned_and_prepared_to_the_same_bytes(joined: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    with pytest.MonkeyPatch.context() as patch:
        for module in (shards, parallel):
            patch.setattr(module, "MAX_MEMBERS", 20)
        write_scenes(data, train=30, val=10, test=10, seed=0)
        patch.delattr(parallel, "in_processes")
        there = scanned_and_prepared(data, tmp_path / "there")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS")
        here = scanned_and_prepared(data, tmp_path / "here")
    assert there == here


def test_images_that_only_the_dvc_remote_has_are_scanned_and_sent_to_the_same_bytes(
    joined: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    for module in (shards, parallel):
        monkeypatch.setattr(module, "MAX_MEMBERS", 20)
    write_scenes(root / "data", train=30, val=10, test=10, seed=0)
    with monkeypatch.context() as patch:
        patch.delenv("RAY_ADDRESS")
        here = scanned_and_prepared(root / "data", tmp_path / "here")
    keep_in_remote(root, tmp_path / "store")
    monkeypatch.delattr(parallel, "in_processes")
    there = tmp_path / "there"
    there.mkdir()

    table = scan_images(root / "data", read_dataset(root / "data").images, max_pixels=10**6, workers=2)
    table.to_parquet(there / "scanned.parquet")
    prepared, settings = root / "prepared", Preprocess(image_size=48, max_tokens=16)
    send_images(root / "data", table, there, prepared=prepared, record=there / "sent", settings=settings, workers=2)

    assert {path.name: file_sha256(path) for path in there.glob("*.parquet")}.items() <= here.items()
    [sent] = json.loads((root / SENT).read_text()).values()
    listing = json.loads((root / ".dvc" / "cache" / "files" / "md5" / sent["md5"][:2] / sent["md5"][2:]).read_text())
    found = {one["relpath"]: tmp_path / "store/files/md5" / one["md5"][:2] / one["md5"][2:] for one in listing}
    assert len(found) == 3
    assert {name: file_sha256(path) for name, path in found.items()}.items() <= here.items()
    assert not (root / "data").exists()


def keep_in_remote(root: Path, store: Path) -> None:
    """Push `root`/data to a DVC remote in the folder `store`, and remove it here."""
    from dvc.repo import Repo

    with Repo.init(str(root), no_scm=True) as repo:
        with repo.config.edit("repo") as settings:
            settings["remote"]["store"] = {"url": str(store)}
            settings["core"]["remote"] = "store"
        repo.add([str(root / "data")])
        repo.push()
    shutil.rmtree(root / "data")
    shutil.rmtree(root / ".dvc" / "cache")


@pytest.mark.parametrize("top_layers", [None, 1])
def test_features_are_computed_to_the_same_bytes(joined: Any, tmp_path: Path, top_layers: int | None) -> None:
    write_prepared(tmp_path / "prepared")
    splits, model = [open_prepared(tmp_path / "prepared").split(role) for role in ("train", "val")], make_model()
    for tower in (model.image_tower, model.text_tower):
        assert top_layers is None or tower.split(top_layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(parallel, "in_processes")
        there = stored_features(tmp_path / "there", model, splits)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS")
        here = stored_features(tmp_path / "here", model, splits)
    assert there
    assert there == here


@pytest.mark.parametrize("kind", ["dataset", "folder"])
def test_collections_are_indexed_to_the_same_rows(joined: Any, tmp_path: Path, kind: str, retriever: Retriever) -> None:
    if kind == "dataset":
        write_scenes(tmp_path / "data", train=20, val=5, test=5, seed=0)
        source: Source = DatasetSource(tmp_path / "data")
    else:
        photos = write_photos(tmp_path / "photos", [f"{number}.png" for number in range(30)])
        (photos / "11.png").write_bytes(b"no image")
        source = FilesSource(str(photos))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(indexing, "_BATCH", 7)
        with patch.context() as there_alone:
            there_alone.delattr(parallel, "in_processes")
            there, summary = indexed(tmp_path / "there", source, retriever)
        patch.delenv("RAY_ADDRESS")
        here, expected = indexed(tmp_path / "here", source, retriever)
    assert there.equals(here)
    assert len(there) == summary.embedded == (30 if kind == "dataset" else 29)
    assert [path for path, _ in summary.unreadable] == ([] if kind == "dataset" else ["11.png"])
    assert summary.unreadable == expected.unreadable


def test_a_collection_that_nodes_see_otherwise_is_refused(
    joined: Any, tmp_path: Path, retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = FilesSource(str(write_photos(tmp_path / "photos", ["a.png", "b.png"])))
    monkeypatch.setattr(cluster, "file_sha256", lambda path: "of here")
    with pytest.raises(DiptychError, match=r"The node .* does not see the same .*photos/a\.png"):
        indexed(tmp_path, source, retriever)


def test_nodes_have_the_credentials_of_this_process(joined: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key of here")
    monkeypatch.setenv("OTHER_KEY", "key of here")
    assert results(variable, ["AWS_ACCESS_KEY_ID", "OTHER_KEY"]) == ["key of here", None]
