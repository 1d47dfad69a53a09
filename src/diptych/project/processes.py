"""Child processes: their output line by line, and none of them outliving its parent."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from diptych.errors import DiptychError
from diptych.project.holders import DYING, is_alive
from diptych.project.workspace import Workspace
from diptych.training.launching import LAUNCHED, without_rank

HOLDER = "DIPTYCH_HOLDER"
"""Environment variable of every child of a run that holds a workspace: the run's process id and the folder."""

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent ends, even by a kill; on Linux only.

    Raises:
        SystemExit: the run that this process works for has ended already.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    holder = os.environ.get(HOLDER, "").partition(":")[0]
    if os.getppid() != parent or (holder and not is_alive(int(holder))):
        raise SystemExit(1)


def die_with_dvc() -> None:
    """Call `die_with_parent` in a child of DVC or of a launcher; a stage started by hand may outlive its shell."""
    if "DVC_STAGE" in os.environ or LAUNCHED in os.environ:
        die_with_parent()


def is_held(workspace: Workspace) -> bool:
    """Return whether this process, or the run that started it, holds the workspace."""
    return os.environ.get(HOLDER, "").partition(":")[2] == str(workspace.root)


@contextmanager
def holding(workspace: Workspace, purpose: str) -> Iterator[None]:
    """Hold the workspace while the block runs, unless the run that started this process holds it already.

    First end the processes that a killed run has left in the workspace (Prefect's own server; where the kernel does not
    help, a stage), and remove its temporary files.

    Raises:
        DiptychError: another run holds the workspace; the message says which.
    """
    if is_held(workspace):
        yield
        return
    with workspace.held(purpose):
        _end_leftovers(workspace.root)
        # A run of another project may have started this process.
        before = os.environ.get(HOLDER)
        os.environ[HOLDER] = f"{os.getpid()}:{workspace.root}"
        try:
            with _temporary_files(workspace):
                yield
        finally:
            os.environ.pop(HOLDER, None)
            if before is not None:
                os.environ[HOLDER] = before


@contextmanager
def _temporary_files(workspace: Workspace) -> Iterator[None]:
    """Put the temporary files of this process and its children into one folder while the block runs.

    After a kill the next holder finds the folder by a link, and removes it with the packages of models in it. It is not
    in the workspace itself, because the path of a socket may have at most 107 bytes.
    """
    link = workspace.local / "temporary"
    # The name has a hash of the project's path: a copy of the project has a link to the folder of the original, which
    # may be in use.
    prefix = f"diptych-{hashlib.sha256(os.fsencode(workspace.root)).hexdigest()[:8]}-"
    if link.is_symlink():
        of_killed = link.readlink()
        if of_killed.parent == Path(tempfile.gettempdir()) and of_killed.name.startswith(prefix):
            shutil.rmtree(of_killed, ignore_errors=True)
        link.unlink()
    before = os.environ.get("TMPDIR"), tempfile.tempdir
    folder = tempfile.mkdtemp(prefix=prefix)
    link.symlink_to(folder)
    os.environ["TMPDIR"] = tempfile.tempdir = folder
    try:
        yield
    finally:
        os.environ.pop("TMPDIR")
        if before[0] is not None:
            os.environ["TMPDIR"] = before[0]
        tempfile.tempdir = before[1]
        shutil.rmtree(folder, ignore_errors=True)
        # If .diptych was deleted, the next run holds the workspace by now, and the link is its own.
        if link.is_symlink() and link.readlink() == Path(folder):
            link.unlink()


def stream(
    command: Sequence[str],
    folder: Path,
    on_line: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Run `command` in `folder`, pass each line of its stdout and stderr to `on_line`, and return its exit code.

    The child has this process's environment, or `environment` in its place. The variables of a launcher (RANK, …) are
    removed: they belong to another job.

    Empty lines are left out. Carriage returns end a line too, so the states of a progress bar arrive one by one. An
    exception in `on_line`, or an interrupt, kills the child and is raised again.

    Raises:
        DiptychError: the program is not installed.
    """
    inherited = os.environ if environment is None else environment
    try:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=without_rank(inherited),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
    except FileNotFoundError:
        raise DiptychError(f"{command[0]} is not installed or not on PATH.") from None
    with child:
        try:
            for line in filter(None, map(str.rstrip, child.stdout or ())):
                on_line(line)
            return child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise


def _end_leftovers(root: Path) -> None:
    """Kill the children that an earlier holder of `root` has left, and wait for them.

    Where .diptych was deleted, the earlier holder may still be at work; its children are then its own.
    """
    killed = []
    for process in psutil.process_iter():
        try:
            holder, _, folder = process.environ().get(HOLDER, "").partition(":")
            if folder == str(root) and holder not in {str(parent.pid) for parent in process.parents()}:
                process.kill()
                killed.append(process.pid)
        except psutil.Error:
            # The process has ended in the meantime, or belongs to somebody else.
            continue
    last = time.monotonic() + DYING
    while any(is_alive(pid) for pid in killed) and time.monotonic() < last:
        time.sleep(0.01)
