"""The program behind forked.py: `client SOCKET ARGUMENTS` is the process that a test sees, `server` the one that forks.

The client sends what it was started with to `server SOCKET PROGRAM OWNER`, which forks, and ends as the fork ends. If
the client is killed, so is the fork. The server ends soon after OWNER, the process that has started the tests.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from typing import Any

PROGRAMS = {
    "dvc": (
        "dvc.cli:main",
        [
            *("dvc.cli.parser", "dvc.repo.add", "dvc.repo.reproduce", "dvc.repo.status", "dvc_data.index", "networkx"),
            *("dvc_objects.fs", "dvc_render.image", "dvc_render.vega", "flufl.lock", "ruamel.yaml", "scmrepo.git"),
        ],
    ),
    "diptych": (
        "diptych.cli.main:main",
        [
            *(f"diptych.stages.{name}" for name in ("validate", "preprocess", "baselines", "train", "evaluate")),
            *("diptych.inbox.ingesting", "diptych.inbox.need", "diptych.orchestration.pages"),
            *("diptych.registry.gate", "diptych.registry.register", "mlflow.pyfunc"),
            # What these import when they use it.
            *("great_expectations.expectations.core", "great_expectations.render.view", "pyarrow.dataset"),
            *("great_expectations.datasource.fluent.pandas_datasource", "pyarrow.parquet"),
            "sklearn.feature_extraction.text",
            *("torch._dynamo", "accelerate", "matplotlib.backends.backend_svg", "mpl_toolkits.mplot3d"),
            *("mlflow.store.tracking.sqlalchemy_store", "mlflow.store.model_registry.sqlalchemy_store"),
            *("prefect.events.worker", "prefect.concurrency.sync", "alembic.command", "opentelemetry.sdk.trace", "git"),
        ],
    ),
    # What a registered model needs that is not in its package.
    "script": (
        "__main__:run_script",
        ["mlflow.pyfunc", "torch", "torchvision.transforms.v2.functional", "transformers.models.bert.modeling_bert"],
    ),
}
"""Function of each program, and the modules that are imported before its forks. `script` is any Python program."""
ALL_FORKED = "ALL_FORKED"
"""Environment variable: a folder with a file for each program that runs it. Where a fork has it, the DVC that diptych
runs is a fork too, and so are the diptych that a stage of DVC runs, and the gate's clean process.
"""
FIRST = "FIRST"
"""Environment variable: a function of the tests that a fork calls first, as "module:function"."""


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


def serve(path: str, program: str, owner: int) -> None:
    """Import what `program` needs, then fork for each client until the process `owner` has ended."""
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
    # Nobody reads on.
    os.dup2(2, 1)
    forks: dict[int, socket.socket] = {}
    while _is_alive(owner):
        waited_for: list[Any] = [listening, wakeup, *forks.values()]
        ready, _, _ = select.select(waited_for, [], [], 1)
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


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


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
        sys.path.insert(0, folder)
        _adapt(program)
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


def run_script(arguments: list[str]) -> None:
    """Run the Python program that is the first argument."""
    import runpy

    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def _adapt(program: str) -> None:
    """Have what this fork runs be forks, if that is wanted; let it find its settings, and call what comes first."""
    scripts = os.environ.get(ALL_FORKED)
    if program == "dvc" and scripts:
        os.environ["PATH"] = os.pathsep.join([scripts, os.environ["PATH"]])
    elif program == "diptych":
        # Prefect has read its settings.
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
        if scripts:
            from diptych.project import dvc
            from diptych.registry import answer_time

            dvc._command = lambda *arguments: [f"{scripts}/dvc", *arguments]  # noqa: SLF001
            answer_time._command = lambda *paths: [f"{scripts}/script", *map(str, paths)]  # noqa: SLF001

    if first := os.environ.get(FIRST):
        import pkgutil

        sys.path.append(os.path.dirname(__file__))  # noqa: PTH120
        pkgutil.resolve_name(first)()


if __name__ == "__main__":
    role, place, *rest = sys.argv[1:]
    if role == "client":
        os._exit(client(place, rest))
    serve(place, rest[0], int(rest[1]))
