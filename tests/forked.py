"""Commands in forks of a process that has imported what they need: a process each, but the imports only once.

Importing DVC takes 0.9 s, and MLflow with PyTorch 4 s; the tests start hundreds of their commands. A fork has its own
folder, environment, standard streams, exit code and death, and begins with nothing but imported modules.

    forks = Forks("dvc", tmp_path)
    subprocess.run(forks.command("status", "--json"), cwd=project)

`python forked.py client SOCKET ARGUMENTS` is the process that a test sees. It sends what it was started with to
`python forked.py server SOCKET PROGRAM`, which forks, and ends as the fork ends. If it is killed, so is the fork.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

PROGRAMS = {
    "dvc": ("dvc.cli:main", ["dvc.cli.parser", "dvc.repo", "dvc_data.index", "dvc_objects.fs"]),
    "diptych": (
        "diptych.cli.main:main",
        ["mlflow.pyfunc", "diptych.retriever", "diptych.registry.gate", "diptych.registry.register"],
    ),
}
"""Function of each program, and the modules that are imported before its forks."""


class Forks:
    """Forks of `program`; their server starts with the first command, and has its socket in `folder`."""

    def __init__(self, program: str, folder: Path) -> None:
        self._program = program
        self._socket = str(folder / "socket")
        self._server: subprocess.Popen[bytes] | None = None

    def command(self, *arguments: str) -> list[str]:
        """Return the words of a process that does what `program ARGUMENTS` does."""
        if self._server is None:
            self._start()
        # Without site-packages, which the client does not need.
        return [sys.executable, "-IS", __file__, "client", self._socket, *arguments]

    def _start(self) -> None:
        import subprocess

        command = [sys.executable, "-P", __file__, "server", self._socket, self._program]
        self._server = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._server.stdout is not None
        if self._server.stdout.readline() != b"ready\n":
            raise RuntimeError(f"the server of {self._program}'s forks has not started")

    def end(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.kill()
            self._server.communicate()


def client(path: str, arguments: list[str]) -> int:
    """Have the server fork, and return the exit code of the fork."""
    words = [os.getcwd(), *arguments, "", *(f"{name}={value}" for name, value in os.environ.items())]  # noqa: PTH109
    content = "\0".join(words).encode(errors="surrogateescape")
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        socket.send_fds(connection, [len(content).to_bytes(4)], [0, 1, 2])
        connection.sendall(content)
        answer = connection.recv(4)
    code = int.from_bytes(answer, signed=True) if answer else 1
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    return code


def serve(path: str, program: str) -> None:
    """Import what `program` needs, then fork for each client until this process is killed."""
    import gc
    import importlib
    import pkgutil

    entry, modules = PROGRAMS[program]
    for module in modules:
        importlib.import_module(module)
    function = pkgutil.resolve_name(entry)
    gc.freeze()
    wakeup, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(path)
    listening.listen(32)
    print("ready", flush=True)
    forks: dict[int, socket.socket] = {}
    parent = os.getppid()
    while os.getppid() == parent:
        waited_for: list[Any] = [listening, wakeup, *forks.values()]
        ready, _, _ = select.select(waited_for, [], [], 5)
        for readable in ready:
            if readable is listening:
                connection, _ = listening.accept()
                streams, words = _receive(connection)
                if not (pid := os.fork()):
                    signal.set_wakeup_fd(-1)
                    listening.close()
                    _run(streams, words, function, program)
                for stream in streams:
                    os.close(stream)
                forks[pid] = connection
            elif readable is wakeup:
                os.read(wakeup, 1000)
            else:
                # The client was killed; one that has its answer closes too.
                for pid in [pid for pid, connection in forks.items() if connection is readable]:
                    if not readable.recv(1):
                        os.kill(pid, signal.SIGKILL)
        _answer(forks)


def _answer(forks: dict[int, socket.socket]) -> None:
    """Tell the clients of forks that have ended how."""
    while forks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with forks.pop(pid) as connection:
            try:
                connection.sendall(os.waitstatus_to_exitcode(status).to_bytes(4, signed=True))
            except BrokenPipeError:
                continue


def _receive(connection: socket.socket) -> tuple[list[int], list[str]]:
    """Return the standard streams of a client, and its folder, its arguments, an empty word, and its environment."""
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    content = b""
    while len(content) < int.from_bytes(size):
        content += connection.recv(1 << 20)
    return streams, content.decode(errors="surrogateescape").split("\0")


def _run(streams: list[int], words: list[str], function: object, program: str) -> None:
    """Become, in the fork, the process that the client was started as."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        folder, *words = words
        arguments, environment = words[: words.index("")], words[words.index("") + 1 :]
        os.chdir(folder)
        os.environ.clear()
        os.environ.update((name, value) for name, _, value in (word.partition("=") for word in environment))
        sys.argv = [program, *arguments]
        sys.path[0] = folder
        assert callable(function)
        code = function(arguments) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        import atexit

        atexit._run_exitfuncs()  # noqa: SLF001
        for file in (sys.stdout, sys.stderr):
            try:
                file.flush()
            except OSError:
                code = code or 1
        os._exit(code & 0xFF)


if __name__ == "__main__":
    role, place, *rest = sys.argv[1:]
    if role == "client":
        os._exit(client(place, rest))
    serve(place, rest[0])
