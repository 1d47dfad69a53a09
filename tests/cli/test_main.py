"""The `diptych` command: light to start, one message a failure, and the exit code that belongs to it."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time

import click
import pytest
import yaml
from fake_project import PARAMS

from diptych import __version__
from diptych.cli import chain
from diptych.cli.main import cli, main
from diptych.errors import DiptychError
from diptych.orchestration import server as prefect_server
from diptych.project import dvc
from diptych.project.workspace import Workspace

HEAVY = {"torch", "transformers", "mlflow", "prefect", "pandas", "numpy", "great_expectations", "dvc", "pydantic"}


@pytest.fixture
def inside(project, monkeypatch):
    """The project, with it as the current folder."""
    monkeypatch.chdir(project.root)
    return project


@pytest.fixture
def empty(inside):
    """The project before it has data."""
    shutil.rmtree(inside.data)
    (inside.root / "data.dvc").unlink()
    return inside


def diptych(*arguments: object) -> int:
    """Run the command in this process and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def failing(monkeypatch, error: BaseException) -> None:
    """Let every command of the chain fail with `error`."""

    def fail() -> Workspace:
        raise error

    monkeypatch.setattr(chain, "enter", fail)


def test_help_imports_nothing_heavy():
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "diptych", "--help"], capture_output=True, text=True, check=True
    )

    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in answer.stderr.splitlines()}
    assert "click" in imported
    assert imported & HEAVY == set()
    assert "Usage: diptych" in answer.stdout


def test_help_answers_in_half_a_second():
    def seconds() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "diptych", "--help"], capture_output=True, check=True)
        return time.perf_counter() - started

    # Once in ten times will do: other tests keep the cores busy.
    assert any(seconds() < 0.5 for _ in range(10))


@pytest.mark.parametrize(
    "command", [[], ["run"], ["stage"], ["register"], ["data"], ["data", "import"], ["data", "scenes"]]
)
def test_every_command_has_help(command, capsys):
    assert diptych(*command, "--help") == 0
    assert capsys.readouterr().out.startswith("Usage: diptych")


def test_every_command_of_the_list_is_there():
    context = click.Context(cli)

    commands = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    assert all(command and command.name == name for name, command in commands.items())


def test_the_version_is_the_packages(capsys):
    assert diptych("--version") == 0
    assert __version__ in capsys.readouterr().out


def test_what_the_user_can_repair_is_one_message_and_exit_code_1(monkeypatch, capsys):
    failing(monkeypatch, DiptychError("captions.json, row 3: the caption is null"))

    assert diptych("register") == 1
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "error: captions.json, row 3: the caption is null\n")


def test_what_nobody_foresaw_is_one_line_and_exit_code_70(monkeypatch, capsys):
    failing(monkeypatch, KeyError("a\nb"))

    assert diptych("register") == 70
    expected = "unexpected error: KeyError: 'a\\nb'; run again with --debug for the traceback\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PREFECT_API_URL", "http://ann:hunter2@127.0.0.1:9/api", "http://127.0.0.1:9/api does not answer"),
        ("PREFECT_API_URL", "foo", "foo is no address"),
        ("PREFECT_API_URL", "http://[", "Invalid IPv6 URL"),
        ("PREFECT_LOGGING_LEVEL", "LOUD", "Prefect cannot start: PREFECT_LOGGING_LEVEL: Input should be"),
        ("SSL_CERT_FILE", "/nowhere", "/nowhere cannot be read as certificates"),
    ],
)
def test_what_keeps_prefect_from_starting_ends_a_run_at_once_with_where_it_is_set(inside, name, value, message):
    (inside.root / "flows").mkdir()
    (inside.root / "flows" / "retrain.py").write_text("retrain = None\n")

    # In another process: Prefect reads its settings when it is first imported.
    answer = subprocess.run(
        [sys.executable, "-m", "diptych", "run"], env={**os.environ, name: value}, capture_output=True, text=True
    )

    assert answer.returncode == 1
    last = answer.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last
    assert name in last
    assert "hunter2" not in last


def test_debug_shows_the_traceback(monkeypatch, capsys):
    failing(monkeypatch, KeyError("a"))

    assert diptych("--debug", "register") == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "artifacts/model"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "artifacts/model"),
        OSError("4096 requested and 512 written"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_reported_as_such(monkeypatch, capsys, error):
    failing(monkeypatch, error)

    assert diptych("register") == 1
    assert capsys.readouterr().err.startswith("error: the disk is full (")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_file_that_this_user_may_not_use_is_named(monkeypatch, capsys, number):
    failing(monkeypatch, OSError(number, os.strerror(number), "/srv/project/.diptych/lock"))

    assert diptych("register") == 1
    assert f"error: /srv/project/.diptych/lock: {os.strerror(number)}" in capsys.readouterr().err


def test_a_full_disk_is_seen_behind_what_it_caused(monkeypatch, capsys):
    wrapped = RuntimeError("cannot write")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    failing(monkeypatch, wrapped)

    assert diptych("register") == 1
    assert "the disk is full" in capsys.readouterr().err


def test_an_interrupt_is_exit_code_130(monkeypatch, capsys):
    failing(monkeypatch, KeyboardInterrupt())

    assert diptych("register") == 130
    assert capsys.readouterr().err.strip() == "interrupted"


@pytest.mark.parametrize("arguments", [["no-such-command"], ["stage", "deploy"], ["run", "--fast"], ["data", "import"]])
def test_a_wrong_call_is_exit_code_2(arguments, capsys):
    assert diptych(*arguments) == 2
    assert "Usage: diptych" in capsys.readouterr().err


def test_outside_of_a_project_that_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert diptych("run") == 1
    assert "is not in a diptych project" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["run"], ["register"], ["stage", "train"]])
@pytest.mark.parametrize(("content", "key"), [("sede: 1", "sede: unknown key"), ("seed: one", "seed: input should be")])
def test_wrong_params_are_refused_before_any_work(inside, capsys, command, content, key):
    inside.params.write_text(content)

    assert diptych(*command) == 1
    assert key in capsys.readouterr().err


def test_a_stage_runs_on_the_projects_params(inside, monkeypatch):
    from diptych.stages import preprocess

    seen = []
    monkeypatch.setattr(preprocess, "run", lambda workspace, params: seen.append((workspace, params.seed)))
    inside.params.write_text(PARAMS.replace("seed: 0", "seed: 5"))

    assert diptych("stage", "preprocess") == 0
    assert seen == [(inside, 5)]


def test_a_second_run_says_who_holds_the_workspace(inside, capsys):
    with inside.held("diptych run"):
        codes = [diptych(*command) for command in (["run"], ["register"], ["stage", "train"], ["data", "scenes"])]

    lines = capsys.readouterr().err.splitlines()
    assert codes == [1, 1, 1, 1]
    assert all("in use by `diptych run` (process" in line for line in lines)


def test_a_stage_works_beneath_the_run_that_holds_the_workspace(inside, monkeypatch):
    from diptych.project.processes import holding
    from diptych.stages import preprocess

    monkeypatch.setattr(preprocess, "run", lambda workspace, params: None)

    with holding(inside, "diptych run"):
        assert diptych("stage", "preprocess") == 0


def test_the_version_is_printed_for_people_and_for_programs(inside, monkeypatch, capsys):
    from diptych.registry import register

    version = register.RegisteredVersion(
        "diptych", "3", ["challenger"], False, "run", "1", "models:/diptych/3", {"towers/rsum": 1.0}, {}
    )
    monkeypatch.setattr(register, "register", lambda workspace, params: version)

    assert diptych("register") == 0
    assert capsys.readouterr().out == "diptych version 3 (challenger): registered already, as it is\n"
    assert diptych("register", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == {"towers/rsum": 1.0}


def test_the_flow_is_the_projects_own(inside, monkeypatch, capsys):
    (inside.root / "flows").mkdir()
    (inside.root / "flows" / "retrain.py").write_text(
        "def retrain(force, promotion, inbox):\n"
        "    return {'data': 'present', 'inbox': [], 'why': [], 'stages': {},\n"
        "            'metrics': {}, 'tracking_uri': f'{force} {promotion}',\n"
        "            'decision': {'outcome': 'not asked', 'why': '', 'champion': None},\n"
        "            'version': {'name': 'diptych', 'version': '1', 'created': True}}\n"
    )
    inside.presets.mkdir()
    (inside.presets / "small.yaml").write_text(PARAMS.replace("seed: 0", "seed: 9"))
    # A flow of this kind needs no server, which would take seconds to start.
    monkeypatch.setattr(prefect_server, "ready", lambda root: None)

    assert diptych("run", "--json", "--force", "--preset", "small") == 0
    assert json.loads(capsys.readouterr().out)["tracking_uri"] == "True never"
    assert "seed: 9" in inside.params.read_text()
    assert diptych("run") == 0
    assert "version    diptych 1 (challenger), new" in capsys.readouterr().out


def test_a_project_without_its_flow_says_so(inside, capsys):
    assert diptych("run") == 1
    assert "flows/retrain.py is missing; it is part of the project. Bring back a copy" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--deal", "80/20"],
        ["--deal", "0/1/1"],
        ["--split", "a", "--split", "b"],
        ["--karpathy", "TABLE"],
        ["--images", "PHOTOS"],
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


def test_the_environment_is_prepared_but_what_the_user_has_set_stays(inside, monkeypatch):
    from diptych.project.environment import enter

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("PATH", "/usr/bin")

    enter()

    assert os.environ["PREFECT_HOME"] == str(inside.local / "prefect")
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["PATH"].split(os.pathsep)[0] == os.path.dirname(sys.executable)  # noqa: PTH120


def test_a_prefect_server_of_ones_own_keeps_its_settings(inside, monkeypatch):
    from diptych.project.environment import enter

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    monkeypatch.delenv("PREFECT_HOME", raising=False)

    enter()

    assert "PREFECT_HOME" not in os.environ
