"""`diptych data`: importing and drawing a dataset, its status, and the way back to an earlier one."""

import json
import shutil
import tarfile
from io import BytesIO

import pytest
import yaml
from command import diptych

from diptych.project import dvc
from diptych.project.changing import recover
from diptych.project.dataset import record_dataset
from diptych.project.git import head_commit
from diptych.project.record import dataset_version


@pytest.fixture
def photos(tmp_path, photo):
    """A folder with four images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(4):
        (folder / f"{index}.png").write_bytes(photo(index))
    return folder


def coco(path, indices) -> str:
    images = [{"id": index + 1, "file_name": f"{index}.png"} for index in indices]
    annotations = [{"id": index + 1, "image_id": index + 1, "caption": "a thing"} for index in indices]
    path.write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": annotations}))
    return str(path)


def splits(workspace) -> dict[str, str]:
    content = json.loads((workspace.data / "captions.json").read_text())
    return {image["source"]: image["split"] for image in content["images"]}


def scenes(*more: object) -> int:
    return diptych("data", "scenes", "--train", 3, "--val", 1, "--test", 1, "--size", 32, *more)


def test_scenes_are_drawn_and_recorded(empty, capsys):

    assert scenes() == 0
    assert capsys.readouterr().out == "5 scenes are in data/.\n"
    assert dvc.status(empty, "data.dvc") == {}

    assert scenes() == 0
    assert capsys.readouterr().out == "data/ had exactly these scenes already.\n"


def test_scenes_do_not_replace_a_dataset_unasked(inside, capsys):
    before = (inside.data / "captions.json").read_bytes()

    assert scenes() == 1
    assert "--replace" in capsys.readouterr().err
    assert (inside.data / "captions.json").read_bytes() == before
    assert scenes("--replace") == 0


def test_a_recorded_dataset_that_cannot_be_fetched_gives_way_only_when_asked_to(inside, photos, capsys):
    shutil.rmtree(inside.data)
    shutil.rmtree(inside.root / ".dvc" / "cache")
    table = photos.parent / "captions.csv"
    table.write_text("file,caption\n" + "".join(f"{path.name},a photo\n" for path in sorted(photos.iterdir())))
    before = (inside.root / "data.dvc").read_bytes()

    assert diptych("data", "scenes", "--train", 1, "--val", 1, "--test", 1) == 1
    assert diptych("data", "import", "--table", table, "--images", photos) == 1
    assert "`diptych data import --replace`" in capsys.readouterr().err
    assert (inside.root / "data.dvc").read_bytes() == before

    assert diptych("data", "import", "--table", table, "--images", photos, "--replace") == 0
    assert (inside.root / "data.dvc").read_bytes() != before


def test_the_datasets_status_is_printed_for_people_and_for_programs(empty, capsys):
    scenes()
    capsys.readouterr()

    assert diptych("data", "status") == 0
    assert "train" in capsys.readouterr().out
    assert diptych("data", "status", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == {"train": 3, "val": 1, "test": 1}


def test_several_coco_files_come_with_their_splits(empty, photos, tmp_path, capsys):
    first, second = coco(tmp_path / "a.json", [0, 1]), coco(tmp_path / "b.json", [2, 3])
    arguments = ["--coco", first, "--coco", second, "--images", photos, "--split", "train", "--split", "val"]

    assert diptych("data", "import", *arguments) == 0
    assert list(splits(empty).values()) == ["train", "train", "val", "val"]
    assert capsys.readouterr().out.startswith("4 images and 4 captions added (")
    assert yaml.safe_load((empty.root / "data.dvc").read_text())["outs"][0]["nfiles"] == 2

    assert diptych("data", "import", *arguments) == 0
    assert capsys.readouterr().out.startswith("0 images and 0 captions added (")


def test_a_karpathy_split_brings_its_own(empty, photos, tmp_path, capsys):
    records = [
        {"filename": f"{index}.png", "split": split, "sentences": [{"raw": "a thing"}]}
        for index, split in enumerate(["train", "restval", "val", "test"])
    ]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": records}))

    assert diptych("data", "import", "--karpathy", path, "--images", photos) == 0
    assert list(splits(empty).values()) == ["train", "train", "val", "test"]
    assert diptych("data", "import", "--karpathy", path, "--images", photos, "--split", "train") == 2


@pytest.mark.parametrize("kind", ["--coco", "--karpathy", "--table"])
def test_links_are_followed_into_the_folder_that_is_named(empty, photos, tmp_path, kind, capsys):
    links = tmp_path / "links"
    links.mkdir()
    for path in photos.iterdir():
        (links / path.name).symlink_to(path)
    file = tmp_path / {"--coco": "a.json", "--karpathy": "dataset.json", "--table": "captions.csv"}[kind]
    if kind == "--coco":
        coco(file, range(4))
    elif kind == "--karpathy":
        records = [{"filename": f"{index}.png", "sentences": [{"raw": "a thing"}]} for index in range(4)]
        file.write_text(json.dumps({"images": records}))
    else:
        file.write_text("file,caption\n" + "".join(f"{index}.png,a thing\n" for index in range(4)))

    assert diptych("data", "import", kind, file, "--images", links) == 1
    assert "--links-within" in capsys.readouterr().err
    assert diptych("data", "import", kind, file, "--images", links, "--links-within", photos) == 0
    assert len(splits(empty)) == 4


def test_a_table_is_dealt_as_asked(empty, photos, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("file,caption\n" + "".join(f"{index}.png,a thing\n" for index in range(4)))

    assert diptych("data", "import", "--table", path, "--images", photos, "--deal", "1/0/0") == 0
    assert set(splits(empty).values()) == {"train"}


def archive(path, numbers, photo) -> None:
    with tarfile.open(path, "w") as tar:
        for number in numbers:
            for suffix, content in (("png", photo(number)), ("txt", b"a thing")):
                header = tarfile.TarInfo(f"{number}.{suffix}")
                header.size = len(content)
                tar.addfile(header, BytesIO(content))


def test_damaged_archives_are_listed_to_be_imported_later(empty, photo, tmp_path, capsys):
    for number in range(3):
        archive(tmp_path / f"{number}.tar", [2 * number, 2 * number + 1], photo)
    whole = (tmp_path / "1.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:1500])

    assert diptych("data", "import", "--webdataset", f"{tmp_path}/{{0..2}}.tar", "--split", "train", "--replace") == 1
    printed = capsys.readouterr()
    assert "4 images and 4 captions added" in printed.out
    assert "1.tar is damaged" in printed.err
    assert "`diptych data import --webdataset @.diptych/import-failed.txt --split train`" in printed.err
    assert dvc.status(empty, "data.dvc") == {}

    (tmp_path / "1.tar").write_bytes(whole)
    assert diptych("data", "import", "--webdataset", "@.diptych/import-failed.txt") == 0
    assert "2 images and 2 captions added" in capsys.readouterr().out
    assert not (empty.local / "import-failed.txt").exists()


def test_a_folder_in_a_form_of_the_hub_is_imported(empty, photos, capsys):
    rows = [{"file_name": f"{number}.png", "says": f"thing {number}"} for number in range(4)]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    arguments = ("data", "import", "--hf", photos, "--replace")

    assert diptych(*arguments) == 1
    assert "Choose by --caption-column" in capsys.readouterr().err
    assert diptych(*arguments, "--caption-column", "says", "--split", "train") == 0
    assert splits(empty) == {f"{number}.png": "train" for number in range(4)}
    assert not (empty.local / "cache" / "importing").exists()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--deal", "80/20"],
        ["--deal", "0/1/1"],
        ["--split", "a", "--split", "b"],
        ["--karpathy", "TABLE"],
        ["--images", "PHOTOS"],
        ["--webdataset", "a.tar"],
        ["--caption-column", "words"],
    ],
)
def test_an_import_that_is_called_wrongly_writes_nothing(empty, photos, tmp_path, options, capsys):
    path = tmp_path / "table.csv"
    path.write_text("file,caption\n0.png,a thing\n")
    words = {"TABLE": str(path), "PHOTOS": str(photos)}
    source = ["--table", path] if options else []

    code = diptych("data", "import", *source, "--images", photos, *[words.get(option, option) for option in options])

    assert (code, empty.data.exists()) == (2, False)


def test_as_many_folders_as_coco_files_are_needed(empty, photos, tmp_path):
    path = coco(tmp_path / "a.json", [0])
    three = ["--coco", path] * 3

    assert diptych("data", "import", *three, "--images", photos, "--images", photos) == 2


def test_importing_over_scenes_needs_a_decision(empty, photos, tmp_path, capsys):
    scenes()
    arguments = ["--coco", coco(tmp_path / "a.json", [0]), "--images", photos, "--split", "train"]

    assert diptych("data", "import", *arguments) == 1
    assert "--replace" in capsys.readouterr().err
    assert diptych("data", "import", *arguments, "--add") == 0
    assert len(splits(empty)) == 6
    assert "meta" not in yaml.safe_load((empty.root / "data.dvc").read_text())


@pytest.fixture
def grown(inside):
    """The project, whose dataset has become another one since HEAD."""
    (inside.data / "captions.json").write_text('{"info": {"seed": 7}, "images": [], "annotations": []}')
    record_dataset(inside)
    return inside


@pytest.mark.parametrize("arguments", [[], ["champion", "--to", "HEAD"]])
def test_going_back_wants_a_version_or_a_commit(grown, arguments):
    assert diptych("data", "revert", *arguments) == 2


def test_going_back_tells_which_dataset_is_there_now(grown, capsys):
    later, sha = dataset_version(grown), head_commit(grown.root)

    assert diptych("data", "revert", "--to", "HEAD") == 0

    now = dataset_version(grown)
    assert now
    assert later
    text = capsys.readouterr().out
    assert text.startswith(f"data/ is version {now[:12]}, which commit {sha[:10]} records (no longer {later[:12]})")
    assert diptych("data", "revert", "--to", "HEAD") == 0
    assert "records (as before)" in capsys.readouterr().out


def test_going_back_is_printed_for_programs(grown, capsys):
    later = dataset_version(grown)

    assert diptych("data", "revert", "--to", "HEAD", "--json") == 0

    assert json.loads(capsys.readouterr().out) == {
        "commit": head_commit(grown.root),
        "before": later,
        "after": dataset_version(grown),
    }


def test_an_ingestion_that_was_ended_does_not_undo_it_later(grown):
    before = {"data.dvc": (grown.root / "data.dvc").read_text(), "dvc.lock": None}
    grown.local.mkdir(exist_ok=True)
    (grown.local / "taking.json").write_text(json.dumps(before))

    assert diptych("data", "revert", "--to", "HEAD") == 0

    assert not recover(grown)
    assert json.loads((grown.data / "captions.json").read_text())["info"] == {}
