import getpass
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diptych.project.environment import prepare

SEEN = """
import atexit, gc, sys
from pathlib import Path
from diptych.project.environment import collect_as_usual, prepare

usual = gc.get_threshold()
atexit.register(lambda: print("frozen", gc.get_freeze_count() > 0))
prepare(Path(sys.argv[1]))
prepare(Path(sys.argv[1]))
print("rare", gc.get_threshold() > usual, gc.get_freeze_count())
if "computes" in sys.argv:
    collect_as_usual()
    print("usual", gc.get_threshold() == usual, gc.get_freeze_count() > 0)
"""


def seen(*arguments: str) -> list[str]:
    """What a process sees of its garbage collector; its last line is printed at exit."""
    return subprocess.run(
        [sys.executable, "-c", SEEN, *arguments], capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_imports_are_not_looked_through_for_garbage_again_and_again(tmp_path: Path) -> None:
    assert seen(str(tmp_path)) == ["rare True 0", "frozen True"]


def test_what_computes_collects_garbage_as_usual(tmp_path: Path) -> None:
    assert seen(str(tmp_path), "computes") == ["rare True 0", "usual True True", "frozen True"]


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user whom the machine does not know, as by `docker run --user 1234`."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "HOME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr("pwd.getpwuid", unknown)


@pytest.mark.usefixtures("nobody")
def test_a_user_whom_the_machine_does_not_know_has_a_name_and_a_home(tmp_path: Path) -> None:
    prepare(tmp_path)

    assert getpass.getuser() == f"uid{os.getuid()}"
    assert Path.home() == tmp_path / ".diptych" / "home"


@pytest.mark.usefixtures("nobody")
def test_a_home_that_is_given_stays_even_if_nobody_may_write_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")

    prepare(tmp_path)

    assert os.environ["HOME"] == "/nonexistent"


@pytest.mark.usefixtures("nobody")
def test_the_home_of_another_user_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    prepare(tmp_path)

    assert Path.home() == tmp_path / ".diptych" / "home"


def test_a_python_that_strips_docstrings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").touch()
    command = [sys.executable, "-OO", "-m", "diptych", "data", "status"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert (done.returncode, done.stderr.startswith("error: PYTHONOPTIMIZE=2")) == (1, True)


def test_a_file_in_the_project_hides_no_module_of_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "random.py").write_text("raise ImportError")
    monkeypatch.chdir(tmp_path)

    prepare(tmp_path)

    subprocess.run([sys.executable, "-m", "json.tool", "--help"], check=True, capture_output=True)
    subprocess.run([sys.executable, "-c", "import random"], check=True)


def test_the_environment_is_prepared_but_what_the_user_has_set_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_HOME", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("PATH", "/usr/bin")

    prepare(tmp_path)

    assert os.environ["PREFECT_HOME"] == str(tmp_path / ".diptych" / "prefect")
    assert os.environ["HF_HUB_OFFLINE"] == "0"
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)


def test_a_prefect_server_of_ones_own_keeps_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    monkeypatch.delenv("PREFECT_HOME", raising=False)

    prepare(tmp_path)

    assert "PREFECT_HOME" not in os.environ
