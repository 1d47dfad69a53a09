"""Child processes end with their parents, and speak line by line."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from waiting import dies

from diptych.errors import DiptychError
from diptych.project.processes import (
    HOLDER,
    die_with_parent,
    holding,
    stream,
)
from diptych.project.workspace import Workspace

CHILD = """
import time
from diptych.project.processes import die_with_parent
die_with_parent()
print("up", flush=True)
time.sleep(60)
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_a_child_does_not_outlive_a_parent_that_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout
    pid, up = int(parent.stdout.readline()), parent.stdout.readline()

    parent.send_signal(signal.SIGKILL)
    parent.wait()

    assert (up.strip(), dies(pid)) == ("up", True)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is Linux's")
def test_a_stage_of_a_run_that_has_ended_already_ends_too():
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    code = "from diptych.project.processes import die_with_parent; die_with_parent(); print('still here')"

    child = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, HOLDER: f"{ended.pid}:/"}, capture_output=True
    )

    assert (child.returncode, child.stdout) == (1, b"")


def test_elsewhere_than_on_linux_dying_with_the_parent_is_left_out(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")

    die_with_parent()


def test_lines_arrive_one_by_one_whether_newline_or_carriage_return_ends_them(tmp_path):
    lines: list[str] = []

    code = stream([sys.executable, "-c", "print('a\\rb\\n\\nc', end='')"], tmp_path, lines.append)

    assert (code, lines) == (0, ["a", "b", "c"])


def test_bytes_that_are_no_text_are_shown_as_well_as_can_be(tmp_path):
    lines: list[str] = []

    stream([sys.executable, "-c", "import sys; sys.stdout.buffer.write(b'\\xff!\\n')"], tmp_path, lines.append)

    assert lines == ["\ufffd!"]


def test_a_program_that_is_missing_is_named(tmp_path):
    with pytest.raises(DiptychError, match="no-such-program is not installed"):
        stream(["no-such-program"], tmp_path, print)


def test_whoever_listens_and_fails_ends_the_child(tmp_path):
    started = time.monotonic()

    def fail(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream([sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"], tmp_path, fail)

    assert time.monotonic() - started < 30


def test_what_a_run_starts_works_beneath_its_hold(tmp_path, monkeypatch):
    monkeypatch.delenv(HOLDER, raising=False)
    workspace = Workspace(tmp_path)

    with holding(workspace, "outer"), holding(workspace, "inner"):
        assert os.environ[HOLDER] == f"{os.getpid()}:{tmp_path}"

    assert HOLDER not in os.environ


def test_a_run_of_another_project_holds_its_own_workspace_too(tmp_path, monkeypatch):
    outer = f"{os.getpid()}:{tmp_path / 'a'}"
    monkeypatch.setenv(HOLDER, outer)
    workspace = Workspace(tmp_path / "b")
    workspace.root.mkdir()

    with workspace.held("diptych run"), pytest.raises(DiptychError, match="in use by"), holding(workspace, "import"):
        pass
    with holding(workspace, "import"):
        assert os.environ[HOLDER] == f"{os.getpid()}:{workspace.root}"

    assert os.environ[HOLDER] == outer


def test_a_second_run_is_told_who_holds_the_workspace(tmp_path, monkeypatch):
    monkeypatch.delenv(HOLDER, raising=False)
    code = (
        "import sys; from pathlib import Path; from diptych.project.workspace import Workspace\n"
        "with Workspace(Path(sys.argv[1])).held('diptych run'): print('held', flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdout
    first.stdout.readline()

    with (
        pytest.raises(DiptychError, match=rf"in use by `diptych run` \(process {first.pid} "),
        holding(Workspace(tmp_path), "x"),
    ):
        pass

    first.kill()
    first.wait()
    with holding(Workspace(tmp_path), "after the kill"):
        pass


def test_what_a_killed_run_left_running_is_ended_by_the_next(tmp_path, monkeypatch):
    monkeypatch.delenv(HOLDER, raising=False)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    leftover = subprocess.Popen(sleep, env={**os.environ, HOLDER: f"{ended.pid}:{tmp_path}"})
    other = subprocess.Popen(sleep, env={**os.environ, HOLDER: "1:/elsewhere"})

    with holding(Workspace(tmp_path), "diptych run"):
        code = leftover.poll()

    assert (code, other.poll()) == (-signal.SIGKILL, None)
    other.kill()
    other.wait()


def test_temporary_files_of_a_holder_and_its_children_end_with_it(tmp_path, monkeypatch):
    monkeypatch.delenv(HOLDER, raising=False)
    before = tempfile.gettempdir(), os.environ.get("TMPDIR")
    code = "import tempfile; print(tempfile.mkdtemp())"

    with holding(Workspace(tmp_path), "diptych run"):
        own = Path(tempfile.mkdtemp())
        childs = Path(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip())
        assert own.parent == childs.parent == Path(tempfile.gettempdir())

    assert not own.parent.exists()
    assert (tempfile.gettempdir(), os.environ.get("TMPDIR")) == before


def test_temporary_files_of_a_killed_holder_are_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.delenv(HOLDER, raising=False)
    code = (
        "import os, signal, sys, tempfile; from pathlib import Path; from diptych.project.workspace import Workspace\n"
        "from diptych.project.processes import holding\n"
        "with holding(Workspace(Path(sys.argv[1])), 'x'):\n"
        "    print(tempfile.mkdtemp(), flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    left = Path(killed.stdout.strip())
    assert left.is_dir()

    with holding(Workspace(tmp_path), "diptych run"):
        assert not left.parent.exists()
    assert not (tmp_path / ".diptych" / "temporary").is_symlink()


def test_a_copy_of_a_project_leaves_the_temporary_files_of_the_original_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(HOLDER, raising=False)
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.mkdir()
    with holding(Workspace(original), "diptych run"):
        own = Path(tempfile.mkdtemp())
        shutil.copytree(original, copy, symlinks=True)
        # As in another process, which does not work beneath that run.
        monkeypatch.delenv(HOLDER)
        with holding(Workspace(copy), "diptych run"):
            assert own.is_dir()
        monkeypatch.setenv(HOLDER, "")


def test_a_run_whose_folder_was_deleted_removes_nothing_of_the_next_one(tmp_path, monkeypatch):
    monkeypatch.delenv(HOLDER, raising=False)
    workspace = Workspace(tmp_path)
    before = tempfile.gettempdir()
    monkeypatch.setattr(tempfile, "tempdir", before)
    link, note = workspace.local / "temporary", workspace.local / "holder.json"

    with ExitStack() as second_run:
        with holding(workspace, "the first run"):
            of_first = Path(tempfile.gettempdir())
            shutil.rmtree(workspace.local)
            # As in another process, which does not work beneath the first run.
            monkeypatch.delenv(HOLDER)
            monkeypatch.setattr(tempfile, "tempdir", before)
            second_run.enter_context(holding(workspace, "the second run"))
            of_second = Path(tempfile.gettempdir())
        assert not of_first.exists()
        assert of_second.is_dir()
        assert link.readlink() == of_second
        assert "the second run" in note.read_text()
        monkeypatch.setenv(HOLDER, "")
        monkeypatch.setenv("TMPDIR", str(of_second))

    assert not of_second.exists()
    assert not link.is_symlink()
    assert not note.exists()


def test_children_of_a_run_that_still_works_are_left_alone_where_its_folder_was_deleted(tmp_path, monkeypatch):
    monkeypatch.delenv(HOLDER, raising=False)
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    child = subprocess.Popen(sleep, env={**os.environ, HOLDER: f"{os.getpid()}:{tmp_path}"})

    with holding(Workspace(tmp_path), "the second run"):
        assert child.poll() is None

    child.kill()
    child.wait()


def test_a_link_that_leads_elsewhere_is_removed_alone(tmp_path, monkeypatch):
    monkeypatch.delenv(HOLDER, raising=False)
    (tmp_path / ".diptych").mkdir()
    (tmp_path / "diptych-mine").mkdir()
    (tmp_path / ".diptych" / "temporary").symlink_to(tmp_path / "diptych-mine")

    with holding(Workspace(tmp_path), "diptych run"):
        pass

    assert (tmp_path / "diptych-mine").is_dir()


def test_a_child_does_not_inherit_a_place_among_several(tmp_path, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.setenv(name, "1")
    lines: list[str] = []

    code = "import os; print([name for name in os.environ if 'RANK' in name or name[:6] in ('WORLD_', 'MASTER')])"
    stream([sys.executable, "-c", code], tmp_path, lines.append)

    assert lines == ["[]"]
