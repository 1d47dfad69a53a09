"""A Prefect server that all processes of the tests share, and the tables of one that has not been used yet."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import shell
from forked import Forks
from sharing import made_once, start_server, wait_for_end

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_UI_ENABLED": "false",
    # As the server that a run starts for itself: without schedules and other services.
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


def prefect_home(factory: pytest.TempPathFactory) -> Path:
    """A PREFECT_HOME to copy: a server takes six seconds to make its tables."""
    return made_once(factory, "prefect-home", partial(_make_home, factory))


def prefect_address(factory: pytest.TempPathFactory) -> str:
    """The address of the server, which answers."""
    return (made_once(factory, "prefect", partial(_start, factory)) / "address").read_text()


@contextmanager
def prefect_server(factory: pytest.TempPathFactory) -> Iterator[str]:
    """Flows that run in this process use the server."""
    address = prefect_address(factory)
    with used(address):
        yield address


@contextmanager
def used(address: str) -> Iterator[None]:
    """This process uses the Prefect server at `address`, also for its events."""
    from prefect.events.worker import EventsWorker
    from prefect.settings import PREFECT_API_URL, temporary_settings

    # The thread that sends events keeps to the server of its first one.
    EventsWorker.drain_all(timeout=10, at_exit=False)
    with temporary_settings({PREFECT_API_URL: address}):
        yield
        EventsWorker.drain_all(timeout=10, at_exit=False)


def _make_home(factory: pytest.TempPathFactory, folder: Path) -> None:
    program = Forks(factory).python("-c", "import prefect_server; prefect_server.make_home()")
    subprocess.run(program, env=shell.environment(**SETTINGS, PREFECT_HOME=str(folder)), check=True)


def make_home() -> None:
    """Make the tables in PREFECT_HOME."""
    from prefect.server.api.server import create_app

    async def make() -> None:
        app = create_app(webserver_only=True)
        async with app.router.lifespan_context(app):
            # Its threads would be waited for.
            os._exit(0)

    asyncio.run(make())


def _start(factory: pytest.TempPathFactory, folder: Path) -> None:
    home = shutil.copytree(prefect_home(factory), folder / "home")
    program = Forks(factory).python("-c", "import prefect_server; prefect_server.serve()", str(folder))
    start_server(*program, **SETTINGS, PREFECT_HOME=str(home))


def serve() -> None:
    """Answer until the process that has started the tests has ended; the arguments are a folder and that process."""
    import uvicorn
    from prefect.server.api.server import create_app

    folder, owner = Path(sys.argv[1]), int(sys.argv[2])

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            print("ready", flush=True)
            # Nobody reads on.
            os.dup2(2, 1)

    listening = socket.create_server(("127.0.0.1", 0))
    (folder / "address").write_text(f"http://127.0.0.1:{listening.getsockname()[1]}/api")
    threading.Thread(target=_end_after, args=(owner,), daemon=True).start()
    config = uvicorn.Config(create_app, factory=True, log_level="error", lifespan="on")
    Server(config).run(sockets=[listening])


def _end_after(owner: int) -> None:
    wait_for_end(owner)
    os._exit(0)
