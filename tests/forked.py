"""Commands in forks of a process that has imported what they need: a process each, but the imports only once.

Importing DVC takes 0.9 s, and what a run needs 10 s; the tests start hundreds of such commands. A fork has its own
folder, environment, cores, standard streams, exit code and death, and begins with nothing but imported modules.

    forks = Forks(tmp_path_factory)
    subprocess.run(forks.command("dvc", "status", "--json"), cwd=project)
"""

from __future__ import annotations

import shlex
import sys
from functools import partial
from pathlib import Path

import pytest
from forking import ALL_FORKED, PACKAGE, PROGRAMS, PYTHON
from sharing import made_once, start_server

from diptych.project import environment

PROGRAM = Path(__file__).with_name("forking.py")


class Forks:
    """Forks of the programs; the server of each starts with its first command, for all processes of the tests."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._started: set[str] = set()
        self._scripts = made_once(factory, "forks", _write_scripts)

    def command(self, program: str, *arguments: str) -> list[str]:
        """Return the words of a process that does what `program ARGUMENTS` does."""
        if program not in self._started:
            made_once(self._factory, f"{program}-forks", partial(_start, program))
            self._started.add(program)
        return [str(self._scripts / program), *arguments]

    def python(self, *arguments: str) -> list[str]:
        """Return the words of a process that does what `python -c` or `python -m` does, with what a run imports."""
        return self.command("diptych", *arguments)

    @property
    def package_python(self) -> str:
        """Path of what stands in for python where a package of a model, which brings its library along, is loaded."""
        return self.command(PACKAGE)[0]

    def everywhere(self) -> dict[str, str]:
        """Return what a command has in its environment where the commands that it runs are to be forks too."""
        for program in PROGRAMS:
            self.command(program)
        return {ALL_FORKED: str(self._scripts)}


def _write_scripts(folder: Path) -> None:
    clients = {}
    for program in PROGRAMS:
        socket = folder.with_name(f"{program}-forks") / "socket"
        # Without site-packages, which the client does not need.
        clients[program] = shlex.join([sys.executable, "-IS", str(PROGRAM), "client", str(socket)])
        _write_script(folder / program, f'exec {clients[program]} "$@"')
    server_or_flow = f'case "$2" in prefect.*|uvicorn) exec {clients["diptych"]} "$@";; esac'
    _write_script(folder / PYTHON, server_or_flow, f'exec {shlex.quote(sys.executable)} "$@"')


def _write_script(path: Path, *lines: str) -> None:
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)


def _start(program: str, folder: Path) -> None:
    # What libraries read once, at their import. One thread, as for the tests themselves: no core is idle.
    settings = {**environment.DEFAULTS, "OMP_NUM_THREADS": "1"}
    start_server(sys.executable, str(PROGRAM), "server", str(folder / "socket"), program, **settings)
