"""`diptych data download`: licence and sizes come first, then consent, then the download and the way to import it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from command import diptych
from web_files import Server, archive_at, serving, zipped

from diptych.cli import download
from diptych.data import downloading
from diptych.data.published import PUBLISHED
from diptych.project.workspace import Workspace

COCO = ("data", "download", "coco-karpathy")
IMPORT = "diptych data import --karpathy downloads/coco-karpathy/dataset_coco.json --images downloads/coco-karpathy"


@pytest.fixture
def servers(photo: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Server]]:
    """A server for each archive of coco-karpathy, with two images."""
    monkeypatch.setattr(downloading, "RETRIES", 0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    records = [
        {"filepath": folder, "filename": f"COCO_{folder}_{number}.jpg", "cocoid": number, "split": split}
        | {"sentences": [{"raw": f"photo number {number}", "sentid": number}]}
        for number, (folder, split) in enumerate((("train2014", "train"), ("val2014", "restval")), start=1)
    ]
    contents = {"caption_datasets.zip": {"dataset_coco.json": json.dumps({"images": records}).encode()}}
    for number, folder in enumerate(("train2014", "val2014"), start=1):
        contents[f"{folder}.zip"] = {f"{folder}/COCO_{folder}_{number}.jpg": photo(number)}
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(zipped(files), f"/{name}")) for name, files in contents.items()]
        members = ("dataset_coco.json", "train2014", "val2014")
        archives = tuple(archive_at(server, member, 100_000) for server, member in zip(servers, members, strict=True))
        monkeypatch.setitem(PUBLISHED, "coco-karpathy", PUBLISHED["coco-karpathy"]._replace(archives=archives))
        yield servers


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Stands in for a terminal, on which somebody answers."""

    def give(text: str) -> None:
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("click.termui.visible_prompt_func", lambda _prompt: text)

    return give


def test_what_was_downloaded_is_imported_by_the_command_that_is_printed(
    empty: Workspace, servers: list[Server], capsys: pytest.CaptureFixture[str]
) -> None:
    assert diptych(*COCO, "--yes") == 0
    printed = capsys.readouterr().out
    assert f"\n  {IMPORT}\n" in printed

    assert diptych(*shlex.split(IMPORT)[1:]) == 0
    assert diptych("data", "status", "--json") == 0
    assert json.loads(capsys.readouterr().out.rpartition("`diptych run`.\n")[2])["images"] == {"train": 2}


def test_sizes_publishers_licence_and_disk_are_shown_before_anything_is_fetched(
    servers: list[Server], tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: Callable[[str], None]
) -> None:
    answer("n")
    assert diptych(*COCO, "--to", tmp_path / "coco") == 1
    printed = capsys.readouterr().out
    assert f"archive  train2014.zip of Somebody (train2014): 0.0 MB, from {servers[1].url}\n" in printed
    assert "licence  The captions are licensed under Creative Commons Attribution 4.0." in printed
    assert "disk     0.3 MB needed for archives and files, " in printed
    assert printed.endswith("Nothing was downloaded.\n")
    assert not (tmp_path / "coco").exists()
    assert [server.asked for server in servers] == [[], [], []]


def test_it_is_downloaded_where_somebody_agrees(
    servers: list[Server], tmp_path: Path, answer: Callable[[str], None]
) -> None:
    answer("y")
    assert diptych(*COCO, "--to", tmp_path / "coco") == 0
    assert (tmp_path / "coco" / "train2014" / "COCO_train2014_1.jpg").exists()


def test_without_a_terminal_consent_is_an_option(
    servers: list[Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert diptych(*COCO, "--to", tmp_path) == 2
    printed = capsys.readouterr()
    assert "licence  " in printed.out
    assert "add --yes" in printed.err
    assert list(tmp_path.iterdir()) == []


def test_a_second_call_fetches_nothing_and_asks_nothing(
    servers: list[Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    diptych(*COCO, "--to", tmp_path, "--yes")
    capsys.readouterr()
    assert diptych(*COCO, "--to", tmp_path) == 0
    printed = capsys.readouterr().out
    assert "archive  train2014.zip of Somebody (train2014): is there already\n" in printed
    assert "diptych data import" in printed
    assert [len(server.asked) for server in servers] == [1, 1, 1]


def test_a_disk_that_is_too_small_is_named_with_what_it_lacks(
    servers: list[Server], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "free_bytes", lambda folder: 10_000)
    assert diptych(*COCO, "--to", tmp_path, "--yes") == 1
    assert f"error: 0.3 MB more must be free for {tmp_path}. Free them, or use --to." in capsys.readouterr().err
    assert [server.asked for server in servers] == [[], [], []]


def test_flickr30k_says_where_its_images_are_to_be_had(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "with blank"
    folder.mkdir()
    (folder / "dataset_flickr30k.json").write_text("{}")
    assert diptych("data", "download", "flickr30k", "--to", folder) == 0
    printed = capsys.readouterr().out
    assert "non-commercial research and education only" in printed
    assert "on request: https://forms.illinois.edu/sec/229675\n" in printed
    assert f"--karpathy '{folder}'/dataset_flickr30k.json --images flickr30k-images\n" in printed


def test_an_unknown_dataset_is_refused_with_those_that_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert diptych("data", "download", "imagenet") == 2
    assert "'coco-karpathy', 'flickr30k'" in capsys.readouterr().err
