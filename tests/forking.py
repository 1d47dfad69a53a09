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

PACKAGE = "package"
PROGRAMS = {
    "dvc": (
        "dvc.cli:main",
        """
        configobj diptych.project.dvc dulwich.index dulwich.walk dulwich.worktree dvc.cachemgr dvc.cli.parser
        dvc.data_cloud dvc.dirs dvc.lock dvc.repo dvc.repo.artifacts dvc.repo.datasets dvc.repo.graph dvc.repo.index
        dvc.repo.metrics dvc.repo.open_repo dvc.repo.params dvc.repo.plots dvc.repo.stage dvc.repo.trie dvc.rwlock
        dvc.scm dvc.utils.strictyaml dvc_data.hashfile.db.local dvc_data.hashfile.status dvc_data.index dvc_objects.fs
        dvc_render flufl.lock fsspec.implementations.memory networkx rich.console rich.json rich.status
        ruamel.yaml.cyaml ruamel.yaml.mergevalue scmrepo.git
        """,
    ),
    "diptych": (
        "diptych.cli.main:main",
        """
        diptych.stages.baselines diptych.stages.evaluate diptych.stages.preprocess diptych.stages.train
        diptych.stages.validate diptych.inbox.ingesting diptych.inbox.need diptych.orchestration.pages
        diptych.registry.gate diptych.registry.register accelerate alembic.command git
        great_expectations.datasource.fluent.pandas_datasource great_expectations.expectations.core
        great_expectations.render.view matplotlib.backends.backend_svg mlflow.pyfunc
        mlflow.store.model_registry.sqlalchemy_store mlflow.store.tracking.sqlalchemy_store mpl_toolkits.mplot3d
        opentelemetry.sdk.trace prefect.cli.deploy prefect.concurrency.sync prefect.events.worker
        prefect.server.api.server pyarrow.dataset pyarrow.parquet sklearn.feature_extraction.text torch._dynamo uvicorn
        """,
    ),
    # Without diptych: packages of models bring their own copy.
    PACKAGE: (
        "",
        """
        mlflow.pyfunc pandas PIL.Image pyarrow safetensors.torch tokenizers torch torchvision.transforms.v2.functional
        transformers.models.bert.modeling_bert
        """,
    ),
}
"""Function of each program, and the modules that are imported before its forks.

Where the first argument is -c, -m or -I, a fork does what python does with these arguments.
"""
PYTHON = "python"
"""Script that is a fork of diptych where Prefect starts a server or a flow run, and this Python for all else."""
ALL_FORKED = "ALL_FORKED"
"""Environment variable: a folder with a script for each program. Where a fork has it, the DVC that diptych runs is a
fork too, and so are the diptych that a stage of DVC runs, and the process in which the gate loads a package.
"""
FIRST = "FIRST"
"""Environment variable: a function of the tests that each fork of diptych calls first: "module:function"."""


def client(path: str, arguments: list[str]) -> int:
    """Have the server fork, and return the exit code of the fork."""
    environment = [f"{name}={value}" for name, value in os.environ.items()]
    cores = ",".join(map(str, os.sched_getaffinity(0))) if sys.platform == "linux" else ""
    words = [os.getcwd(), cores, str(len(arguments)), *arguments, *environment]  # noqa: PTH109
    content = "\0".join(words).encode(errors="surrogateescape")
    # The name of a socket is short, and that of the temporary folder may be long.
    folder, name = os.path.split(path)
    os.chdir(folder)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(name)
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
    function = _import(program)
    wakeup, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    listening = socket.socket(socket.AF_UNIX)
    folder, name = os.path.split(path)
    os.chdir(folder)
    listening.bind(name)
    listening.listen(32)
    print("ready", flush=True)
    # Nobody reads on.
    os.dup2(2, 1)
    forks: dict[int, socket.socket] = {}
    while _lives(owner):
        waited_for: list[Any] = [listening, wakeup, *forks.values()]
        for readable in select.select(waited_for, [], [], 1)[0]:
            if readable is listening:
                _fork(listening, forks, function, program)
            elif readable is wakeup:
                os.read(wakeup, 1000)
            elif not readable.recv(1):
                # The client was killed.
                for pid in [pid for pid, connection in forks.items() if connection is readable]:
                    os.kill(pid, signal.SIGKILL)
        _answer(forks)
    for pid in forks:
        os.kill(pid, signal.SIGKILL)


def wait_for_no_disk() -> None:
    """Let files be handed to the system alone: a test kills processes at most, and takes the power from no machine."""
    # Of the descriptor it still has to be one.
    vars(os)["fsync"] = os.fstat


def _import(program: str) -> object:
    """Import what `program` needs, and do what each fork would do first; return the program's function."""
    import atexit
    import gc
    import importlib
    import pkgutil
    import weakref

    gc.disable()
    wait_for_no_disk()
    sys.path.append(os.path.dirname(__file__))  # noqa: PTH120
    entry, modules = PROGRAMS[program]
    for module in modules.split():
        importlib.import_module(module)
    if program == "dvc":
        # It makes a hundred parsers at each start.
        from dvc.cli import parser

        made = parser.get_main_parser()
        parser.get_main_parser = lambda: made
    if program == "diptych":
        from mlflow_engines import prepare_forks

        prepare_forks()
        atexit.unregister(sys.modules["torch._dynamo.utils"].dump_compile_times)
    # At their exit, forks tidy up what they have made, and nothing that was imported: that alone took 50 ms.
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]  # noqa: SLF001
        finalizer.atexit = False
    gc.freeze()
    gc.enable()
    return pkgutil.resolve_name(entry) if entry else None


def _lives(process: int) -> bool:
    # Not by diptych's own function: packages of models bring their own copy of diptych.
    import psutil  # type: ignore[import-untyped]

    try:
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _fork(listening: socket.socket, forks: dict[int, socket.socket], function: object, program: str) -> None:
    """Fork for the client that waits."""
    connection, _ = listening.accept()
    try:
        streams, words = _receive(connection)
    except OSError:
        # The client was killed before it had said all.
        connection.close()
        return
    if not (pid := os.fork()):
        signal.set_wakeup_fd(-1)
        listening.close()
        _run(streams, words, function, program)
    for stream in streams:
        os.close(stream)
    forks[pid] = connection


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
    """Return the standard streams of a client, and its folder, cores, number of arguments, arguments, environment.

    Raises:
        OSError: the client has ended before it had sent all.
    """
    size, streams, _, _ = socket.recv_fds(connection, 4, 3)
    content = b""
    while len(content) < int.from_bytes(size) or not size:
        if not size or not (received := connection.recv(1 << 20)):
            for stream in streams:
                os.close(stream)
            raise ConnectionResetError
        content += received
    return streams, content.decode(errors="surrogateescape").split("\0")


def _run(streams: list[int], words: list[str], function: object, program: str) -> None:
    """Become, in the fork, the process that the client was started as."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        folder, cores, count, *words = words
        if sys.platform == "linux":
            os.sched_setaffinity(0, map(int, cores.split(",")))
        arguments, environment = words[: int(count)], words[int(count) :]
        os.chdir(folder)
        os.environ.clear()
        os.environ.update((name, value) for name, _, value in (word.partition("=") for word in environment))
        sys.argv = [program, *arguments]
        sys.path.insert(0, folder)
        _adapt(program)
        if arguments[:1] in (["-c"], ["-m"], ["-I"]):
            _run_python(*arguments)
            code = 0
        else:
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


def _run_python(option: str, content: str, *arguments: str) -> None:
    """Do what python does with -c CODE, -m MODULE or -I FILE, and ARGUMENTS."""
    import runpy

    sys.argv = [option, *arguments]
    if option == "-I":
        del sys.path[0]
        runpy.run_path(content, run_name="__main__")
    elif option == "-m":
        runpy.run_module(content, run_name="__main__", alter_sys=True)
    else:
        exec(compile(content, "<string>", "exec"), {"__name__": "__main__"})


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

            sys.executable = f"{scripts}/{PYTHON}"
            dvc._command = lambda *arguments: [f"{scripts}/dvc", *arguments]  # noqa: SLF001
            answer_time._command = lambda *paths: [f"{scripts}/{PACKAGE}", "-I", *map(str, paths)]  # noqa: SLF001
        if first := os.environ.get(FIRST):
            import pkgutil

            pkgutil.resolve_name(first)()


if __name__ == "__main__":
    role, place, *rest = sys.argv[1:]
    if role == "client":
        os._exit(client(place, rest))
    serve(place, rest[0], int(rest[1]))
