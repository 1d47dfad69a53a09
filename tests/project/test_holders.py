from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from diptych.project.holders import has_died, is_alive, new_holder, parse_holder


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
def test_what_has_ended_is_not_alive_even_if_nobody_has_waited_for_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert is_alive(child.pid)

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

    assert Path(f"/proc/{child.pid}").exists()
    assert not is_alive(child.pid)
    child.wait()
    assert not is_alive(child.pid)


def test_a_process_whose_state_the_system_hides_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(process: psutil.Process) -> str:
        raise psutil.AccessDenied(process.pid)

    monkeypatch.setattr(psutil.Process, "status", refuse)

    assert is_alive(os.getpid())


def test_a_holder_has_died_where_its_process_of_this_machine_has_ended() -> None:
    holder = new_holder("diptych run")
    assert not has_died(holder)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert has_died({**holder, "pid": child.pid})
    assert not has_died({**holder, "pid": child.pid, "host": "another"})
    assert not has_died({})


def test_a_note_without_the_number_of_a_process_is_none() -> None:
    holder = new_holder("diptych run")
    assert parse_holder(json.dumps(holder)) == holder
    assert parse_holder(json.dumps({**holder, "pid": "one"})) == {}
