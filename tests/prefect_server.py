"""A Prefect server that all processes of the tests share; it takes ten seconds to start.

`python prefect_server.py FOLDER OWNER` is the server. It ends soon after OWNER, the process that has started the tests.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sharing import made_once, start_server, wait_for_end

SETTINGS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_UI_ENABLED": "false",
    # As the server that a run starts for itself: without schedules and other services.
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
}


def prefect_address(factory: pytest.TempPathFactory) -> str:
    """The address of the server, which answers."""
    return (made_once(factory, "prefect", _start) / "address").read_text()


@contextmanager
def prefect_server(factory: pytest.TempPathFactory) -> Iterator[str]:
    """Flows that run in this process use the server."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    address = prefect_address(factory)
    with temporary_settings({PREFECT_API_URL: address}):
        yield address


def _start(folder: Path) -> None:
    start_server(Path(__file__), str(folder), **SETTINGS, PREFECT_HOME=str(folder))


def serve(folder: Path, owner: int) -> None:
    """Answer until the process `owner` has ended."""
    import uvicorn
    from prefect.server.api.server import create_app

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


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
