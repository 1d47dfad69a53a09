"""The `diptych` command: light to start, one message a failure, and the exit code that belongs to it."""

import errno
import os
import subprocess
import sys
import time

import click
import pytest
from command import diptych

from diptych import __version__
from diptych.cli import chain
from diptych.cli.main import cli
from diptych.errors import DiptychError
from diptych.project.workspace import Workspace

HEAVY = {"torch", "transformers", "mlflow", "prefect", "pandas", "numpy", "great_expectations", "dvc", "pydantic"}


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
