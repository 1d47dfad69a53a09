"""`diptych serve`: search a collection in the browser, and by programs."""

from __future__ import annotations

import logging
import os
import socket
import webbrowser
from contextlib import suppress
from typing import Any

import click

from diptych.cli.index import COLLECTION
from diptych.errors import DiptychError
from diptych.project.environment import enter

log = logging.getLogger(__name__)
TOKEN = "DIPTYCH_SEARCH_TOKEN"
_LAST_ANSWERS = 5
"""Seconds for answers that are under way when the server ends."""


@click.command()
@click.argument("version", required=False)
@COLLECTION
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free port.")
@click.option(
    "--limit", default=128, show_default=True, type=click.IntRange(1), help="Searches that may wait; others get 503."
)
@click.option(
    "--feedback",
    is_flag=True,
    help="Let users mark results; keep their marks with the queries, and a profile of all searches, in feedback/.",
)
@click.option("--wait", is_flag=True, help="Listen although nothing can be served yet, and answer 503 until it can.")
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser.")
def serve(
    version: str | None, collection: str, host: str, port: int, limit: int, feedback: bool, wait: bool, opens: bool
) -> None:
    """Serve the search page and the API for a collection that `diptych index` has indexed.

    VERSION is a number, an alias or a folder; default: the champion, or else the challenger. A new champion whose index
    is up to date takes over between two requests. DIPTYCH_SEARCH_TOKEN, if set, is asked of each request.
    """
    workspace = enter()
    import uvicorn

    from diptych.project.params import read_params
    from diptych.registry.serving import FollowedModels, open_store
    from diptych.serving.app import make_app
    from diptych.serving.feedback import Marks
    from diptych.serving.following import Following

    params = read_params(workspace)
    models = FollowedModels(workspace, params, version, keeps_queries=feedback)
    following = Following(models, open_store(workspace), collection)
    token = os.environ.get(TOKEN)
    if host not in ("127.0.0.1", "localhost", "::1") and not token:
        log.warning("Anybody who reaches %s can search, for %s is not set.", host, TOKEN)
    following.refresh()
    if following.served is None and not wait:
        raise DiptychError(following.problem)
    listening = _listen(host, port)
    marks = Marks(workspace.feedback) if feedback else None
    # Without a token, a page of another host must not reach the server under that host's name.
    hosts = ["127.0.0.1", "localhost"] if host in ("127.0.0.1", "localhost") else None
    app = make_app(following, token=token, limit=limit, marks=marks, hosts=hosts)
    settings: dict[str, Any] = {"log_level": "warning", "access_log": False, "server_header": False}
    server = uvicorn.Server(uvicorn.Config(app, **settings, timeout_graceful_shutdown=_LAST_ANSWERS))
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}/"
    click.echo(f"Search at {address}. Ctrl-C ends it.")
    if opens:
        webbrowser.open(address)
    # Uvicorn ends in order, and then raises the interrupt again.
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise DiptychError(
            f"{host}:{port} cannot be listened on: {error.strerror}. Choose another with --port."
        ) from None
    # Accepted connections inherit it. Without it each answer on a kept connection waits 40 ms for an acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening
