"""Work over processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from waiting import dies

from diptych.data import workers
from diptych.data.workers import in_processes
from diptych.errors import DiptychError


def double(number: int) -> int:
    return 2 * number


def process_of(_: int) -> int:
    return os.getpid()


def refuse(number: int) -> int:
    raise DiptychError(f"no {number}")


def die_at_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def die_once(folder: Path, number: int) -> int:
    """Kill the process of every fifth task at its first try."""
    if number % 5 == 3 and not (folder / str(number)).exists():
        (folder / str(number)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_the_order_of_the_tasks(workers: int) -> None:
    assert list(in_processes(double, range(50), workers)) == [2 * number for number in range(50)]


def test_one_worker_is_this_process() -> None:
    assert set(in_processes(process_of, range(3), 1)) == {os.getpid()}


def test_tasks_are_drawn_only_as_they_are_needed() -> None:
    drawn = []

    def tasks():
        for number in range(1000):
            drawn.append(number)
            yield number

    results = in_processes(double, tasks(), 2)
    next(results)
    assert len(drawn) < 20
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_task_raises_reaches_the_caller(workers: int) -> None:
    with pytest.raises(DiptychError, match="no 0"):
        list(in_processes(refuse, range(3), workers))


def test_a_task_that_kills_its_worker_each_time_is_named() -> None:
    with pytest.raises(DiptychError, match=r"The worker process of shard 7, or .* was killed 3 times.*`threads`"):
        list(in_processes(die_at_seven, range(20), 2, name="shard {}".format))


def test_what_a_killed_worker_did_is_done_again(tmp_path: Path) -> None:
    assert list(in_processes(partial(die_once, tmp_path), range(20), 2)) == list(range(20))
    assert len(list(tmp_path.iterdir())) == 4


def test_without_shared_memory_this_process_works_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", refuse)

    assert list(in_processes(double, range(3), 2)) == [0, 2, 4]
    assert "/dev/shm" in caplog.text


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from diptych.data.workers import in_processes\n"
        "def report(_):\n"
        "    os.write(1, f'{os.getpid()}\\n'.encode())\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    list(in_processes(report, range(2), 2))\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    assert all(map(dies, workers))
