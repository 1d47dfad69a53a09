"""Child processes: their output line by line, and none of them outliving its parent."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from diptych.errors import DiptychError
from diptych.workspace import Workspace

HOLDER = "DIPTYCH_HOLDER"
"""Environment variable of all that works beneath a run that holds a workspace: the run's process id, and the folder."""

DYING = 10.0
"""Seconds that what was killed is given to end."""

_LAUNCHED = "DIPTYCH_LAUNCHED"
"""Environment variable of what `launch` has started: a launcher that passes on no ranks would start itself forever."""

_PLACE = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)"
    r"|(PMI|OMPI_COMM_WORLD|MV2_COMM_WORLD)_(LOCAL_)?(RANK|SIZE)|MPI_LOCAL(RANKID|NRANKS)"
)
"""Environment variables that give a process its place among several, by a launcher, MPI or a cluster."""

_TEMPORARY = "diptych-"
_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends, however that ends; Linux only, elsewhere nothing happens.

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


def is_alive(pid: int) -> bool:
    """Whether a process runs, on Linux; one that has ended and that nobody has waited for, as is the rule in containers
    whose first process reaps no orphans, does not.
    """
    try:
        # After the name, which stands in parentheses and may hold anything.
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] != "Z"
        )
    except (FileNotFoundError, ProcessLookupError):
        return False


def die_with_dvc() -> None:
    """`die_with_parent` beneath DVC and beneath a launcher; a stage started by hand may well outlive its shell."""
    if "DVC_STAGE" in os.environ or _LAUNCHED in os.environ:
        die_with_parent()


def has_place() -> bool:
    """Return whether torchrun or accelerate has started this process as one of several.

    Clusters set RANK and WORLD_SIZE for a node of theirs; LOCAL_RANK comes from a launcher alone.
    """
    return "RANK" in os.environ and "LOCAL_RANK" in os.environ


def forget_other_places() -> None:
    """Remove the place of another job from the environment: accelerate would wait for the others of that job."""
    if not has_place():
        for name in filter(_PLACE.fullmatch, list(os.environ)):
            del os.environ[name]


def is_first_process() -> bool:
    """Whether this process is alone, or the first of those that torchrun or accelerate has started."""
    return not has_place() or int(os.environ["RANK"]) == 0


def process_count() -> int:
    """Return the number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1")) if has_place() else 1


def launch(command: Sequence[str]) -> None:
    """Has `command` (torchrun or accelerate launch, with its options) start this program in several processes.

    It takes the place of this process; in the processes that it starts, and where somebody else has started several,
    nothing happens.

    Raises:
        DiptychError: the program is not there, or it starts this one again without a place among several.
    """
    if has_place():
        return
    if _LAUNCHED in os.environ:
        raise DiptychError(
            f"params.yaml: train.launch: `{' '.join(command)}` starts one process alone. torchrun wants "
            "--nproc-per-node, accelerate launch wants --multi_gpu beside --num_processes; or leave train.launch empty."
        )
    os.environ[_LAUNCHED] = "1"
    program = shutil.which(command[0], path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if program is None:
        raise DiptychError(f"params.yaml: train.launch names {command[0]}, which is not installed or not on PATH.")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(program, [program, *command[1:], "-m", "diptych", *sys.argv[1:]])


@contextmanager
def holding(workspace: Workspace, purpose: str) -> Iterator[None]:
    """Holds the workspace while the block runs, unless the run that started this process holds it already.

    What a killed run has left running in the workspace (Prefect's own server; where the kernel does not help, a stage)
    is ended first, and its temporary files are removed.

    Raises:
        DiptychError: another run holds the workspace; the message says which.
    """
    if HOLDER in os.environ:
        yield
        return
    with workspace.held(purpose):
        _end_leftovers(workspace.root)
        os.environ[HOLDER] = f"{os.getpid()}:{workspace.root}"
        try:
            with _temporary_files(workspace):
                yield
        finally:
            del os.environ[HOLDER]


@contextmanager
def _temporary_files(workspace: Workspace) -> Iterator[None]:
    """What this process and its children put into temporary files while the block runs is in one folder.

    A kill leaves it, with packages of models in it, to the next holder, who finds it by a link. It is not in the
    workspace itself, because the path of a socket may have 107 bytes at most.
    """
    link = workspace.local / "temporary"
    # Named after the project: a copy of it has a link to the same folder, which a run of the original may be using.
    prefix = f"{_TEMPORARY}{hashlib.sha256(os.fsencode(workspace.root)).hexdigest()[:8]}-"
    _remove_temporary(link, prefix)
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
        _remove_temporary(link, prefix)


def _remove_temporary(link: Path, prefix: str) -> None:
    """Remove the link, and what it leads to, if that is what `_temporary_files` makes for this project."""
    if link.is_symlink():
        folder = link.readlink()
        if folder.parent == Path(tempfile.gettempdir()) and folder.name.startswith(prefix):
            shutil.rmtree(folder, ignore_errors=True)
        link.unlink()


def stream(
    command: Sequence[str],
    folder: Path,
    on_line: Callable[[str], None],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Runs `command` in `folder`, hands each line of its stdout and stderr to `on_line`, and returns its exit code.

    It has this process's environment, or `environment` in its place; but for a place among several processes, which
    is another job's.

    Carriage returns end a line too, so the states of a progress bar arrive one by one. An exception in `on_line`, or
    an interrupt, ends the child before it goes on upwards.

    Raises:
        DiptychError: the program is not there.
    """
    inherited = os.environ if environment is None else environment
    alone = {name: value for name, value in inherited.items() if not _PLACE.fullmatch(name)}
    try:
        child = subprocess.Popen(
            command, cwd=folder, env=alone, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0
        )
    except FileNotFoundError:
        raise DiptychError(f"{command[0]} is not installed or not on PATH.") from None
    try:
        assert child.stdout is not None
        for line in _lines(child.stdout.fileno()):
            on_line(line)
        return child.wait()
    except BaseException:
        child.kill()
        child.wait()
        raise
    finally:
        if child.stdout is not None:
            child.stdout.close()


def _lines(descriptor: int) -> Iterator[str]:
    """Non-empty lines of text, each as soon as its end arrives."""
    rest = b""
    while chunk := os.read(descriptor, 65536):
        *complete, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        yield from _texts(complete)
    yield from _texts([rest])


def _texts(lines: Sequence[bytes]) -> Iterator[str]:
    for line in lines:
        text = line.decode("utf-8", errors="replace").rstrip()
        if text:
            yield text


def _end_leftovers(root: Path) -> None:
    """Kills what worked beneath an earlier holder of `root`, and sees it end; the caller holds it now, so that one is
    gone.
    """
    import psutil  # type: ignore[import-untyped]

    killed = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(HOLDER, "").partition(":")[2] == str(root):
                process.kill()
                killed.append(process.pid)
        except psutil.Error:
            # It has ended in the meantime, or belongs to somebody else.
            continue
    last = time.monotonic() + DYING
    while any(is_alive(pid) for pid in killed) and time.monotonic() < last:
        time.sleep(0.01)
