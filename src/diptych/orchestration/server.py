"""The Prefect server of a run: the server that Prefect's settings name, else one that the run starts for itself.

Where it does not answer, one message gives the address, where it is set, what is wrong, and what to do.
"""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.errors import DiptychError
from diptych.orchestration.problems import NOT_PREFECT, Problem, invalid_setting, problem_of
from diptych.project.addresses import without_secrets
from diptych.project.prefect_settings import SERVER, Setting, server_setting, settings
from diptych.project.workspace import find_workspace

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

PATIENCE = 10.0
"""Seconds that a server may take to answer when a command begins."""
_ATTEMPTS_TO_CONNECT = 4
"""Attempts to connect that Prefect's client makes for one request."""
_STARTS = 3
"""Attempts to start a server for the run, each at another port."""
_TEST_BYTES = 2**23
"""Bytes that are written to try out Prefect's folder: as many as a server writes at once."""


def load(root: Path) -> str:
    """Import Prefect with the settings of the project at `root`; return the server's address, empty where none is set.

    Raises:
        DiptychError: a setting is invalid, or a file of settings or certificates is damaged.
    """
    user_settings = settings(root)
    _check_certificates(user_settings)
    try:
        # Prefect reads .env, prefect.toml and pyproject.toml from the current folder.
        with chdir(root):
            from prefect.settings import get_current_settings

            return get_current_settings().api.url or ""
    except (ValueError, OSError) as error:
        raise DiptychError(invalid_setting(error, user_settings)) from error


def ready(root: Path) -> None:
    """Make sure that a flow finds its server: check that the named server answers, or start one."""
    if load(root):
        with client():
            pass
    else:
        _start_ephemeral()


@contextmanager
def client() -> Iterator[SyncPrefectClient]:
    """Yield a client of the server that Prefect's settings name, once the server has answered.

    Raises:
        DiptychError: no server is named, it does not answer, or it refuses this user; also where it answers with an
            error while the block runs.
    """
    root = find_workspace().root
    if not load(root):
        raise DiptychError(
            f"{SERVER} names no Prefect server, and only a server keeps schedules. Start one with "
            f"`prefect server start`, and set {SERVER} to its address: http://127.0.0.1:4200/api."
        )
    from prefect.client.orchestration import get_client

    with explained():
        _ask()
        with get_client(sync_client=True) as connected:
            yield connected


def address() -> str:
    """Return the server's address, minus a user and password in it."""
    from prefect.settings import get_current_settings

    return without_secrets(get_current_settings().api.url or "")


@contextmanager
def explained(note: str = "") -> Iterator[None]:
    """Turn exceptions of Prefect's client into an error for the user that ends with `note`; others pass unchanged."""
    try:
        yield
    except DiptychError:
        raise
    except Exception as error:
        problem = problem_of(error, address())
        if problem is None:
            raise
        raise DiptychError(f"{_message(problem)} {note}".rstrip()) from error


def _ask() -> None:
    """Request the server's version, and something that needs a key where the server has keys."""
    from httpx import HTTPError, InvalidURL, Timeout
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    timeout = Timeout(PATIENCE, connect=PATIENCE / _ATTEMPTS_TO_CONNECT)
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(httpx_settings={"timeout": timeout}, sync_client=True) as connected,
        ):
            connected.raise_for_api_version_mismatch()
            connected.read_flows(limit=1)
    except (HTTPError, InvalidURL, RuntimeError):
        raise
    except Exception as error:  # any: what the client makes of an answer that is not Prefect's
        raise DiptychError(_message(NOT_PREFECT)) from error


def _message(problem: Problem) -> str:
    if not (url := address()):
        return f"The Prefect server that this run has started for itself {problem.text}."
    setting = server_setting(find_workspace().root)
    where = f" Its address is in {setting.where}." if setting else ""
    without = f" To give each run a server of its own, {setting.removal}." if setting else ""
    return f"{url} {problem.text}.{where} {problem.remedy}.{without}"


def _start_ephemeral() -> None:
    """Start the server that Prefect would start, and explain failures.

    Prefect itself restarts without limit a server that ends at once, as where its database cannot be used.
    """
    from httpx import HTTPError
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, get_current_settings

    home = get_current_settings().home
    if not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        raise DiptychError(f"PREFECT_SERVER_EPHEMERAL_ENABLED is false, so a run needs a server: set {SERVER}.")
    _check_home(home)

    class EphemeralServer(SubprocessASGIServer):
        starts = 0

        def find_available_port(self) -> int:
            self.starts += 1
            if self.starts > _STARTS:
                raise RuntimeError("it ended at once")
            return super().find_available_port()

    server = EphemeralServer()
    try:
        server.start()
    except (RuntimeError, HTTPError) as error:
        server.stop()
        raise DiptychError(
            f"The Prefect server that a run starts for itself did not start ({str(error) or type(error).__name__}). "
            f"Its output above tells why. Its database is in {home}: move it away if it is damaged. Where the "
            f"machine is slow, set PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS; or start a server yourself and "
            f"set {SERVER}."
        ) from error


def _check_certificates(user_settings: Sequence[Setting]) -> None:
    """Read the file of trusted authorities as Prefect does: its own error names no file."""
    configured = [(item.name, item.value) for item in user_settings if item.name == "PREFECT_API_SSL_CERT_FILE"]
    for name, path in [*configured, ("SSL_CERT_FILE", os.environ.get("SSL_CERT_FILE", ""))]:
        try:
            if path:
                ssl.create_default_context(cafile=path)
        except OSError as error:
            raise DiptychError(f"{path} cannot be read as certificates ({error.strerror}): correct {name}.") from error


def _check_home(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home) as file:
            file.write(bytes(_TEST_BYTES))
    except OSError as error:
        raise DiptychError(
            f"Prefect cannot write to its folder {home}: {error.strerror}. Free some space there, or make it writable, "
            "or set PREFECT_HOME to another folder."
        ) from error
