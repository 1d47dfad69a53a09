"""The Prefect server that a run speaks to: the one that Prefect's settings name, else one of the run's own.

Whatever keeps it from answering becomes one message: the address, where it is set, what is wrong, and what to do.
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
"""Starts of a server of the run's own, each at another port, before it is given up."""
_TEST_BYTES = 2**23
"""Bytes that a server of the run's own writes at once."""


def load(root: Path) -> str:
    """Import Prefect with the settings of the project at `root`; return the server's address, empty where none is set.

    Raises:
        DiptychError: a setting is invalid, or a file of settings or certificates is damaged.
    """
    known = settings(root)
    _check_certificates(known)
    try:
        # It takes .env, prefect.toml and pyproject.toml from the current folder.
        with chdir(root):
            from prefect.settings import get_current_settings

            return get_current_settings().api.url or ""
    except (ValueError, OSError) as error:
        raise DiptychError(invalid_setting(error, known)) from error


def ready(root: Path) -> None:
    """Make sure that a flow finds its server: the one that is named answers, or one of its own is started.

    Raises:
        DiptychError: the server does not answer as it should, or cannot be started.
    """
    if load(root):
        with client():
            pass
    else:
        _start_own()


@contextmanager
def client() -> Iterator[SyncPrefectClient]:
    """Give a client of the server that Prefect's settings name, once that has answered.

    Raises:
        DiptychError: no server is named, it does not answer, or it refuses this user; also what it answers while the
            block runs, if that is an error.
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
        with get_client(sync_client=True) as found:
            yield found


def address() -> str:
    """Return the server's address for people: without a user and password that it may hold."""
    from prefect.settings import get_current_settings

    return without_secrets(get_current_settings().api.url or "")


@contextmanager
def explained(note: str = "") -> Iterator[None]:
    """Turn what Prefect's client raises into an error for the user, which ends with `note`; other errors pass."""
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
    """Ask the server for its version, and for something that it tells nobody without a key."""
    from httpx import HTTPError, InvalidURL, Timeout
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    timeout = Timeout(PATIENCE, connect=PATIENCE / _ATTEMPTS_TO_CONNECT)
    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}),
            get_client(httpx_settings={"timeout": timeout}, sync_client=True) as one,
        ):
            one.raise_for_api_version_mismatch()
            one.read_flows(limit=1)
    except (HTTPError, InvalidURL, RuntimeError):
        raise
    except Exception as error:  # of whatever an answer of another kind was taken for
        raise DiptychError(_message(NOT_PREFECT)) from error


def _message(problem: Problem) -> str:
    if not (url := address()):
        return f"The Prefect server that this run has started for itself {problem.text}."
    setting = server_setting(find_workspace().root)
    where = f" Its address is in {setting.where}." if setting else ""
    without = f" To give each run a server of its own, {setting.removal}." if setting else ""
    return f"{url} {problem.text}.{where} {problem.mend}.{without}"


def _start_own() -> None:
    """Start the server that Prefect would start, with the reasons why it may fail.

    Prefect itself starts one that ends at once again and again, without end: where it cannot use its database, say.
    """
    from httpx import HTTPError
    from prefect.server.api.server import SubprocessASGIServer
    from prefect.settings import PREFECT_SERVER_ALLOW_EPHEMERAL_MODE, get_current_settings

    home = get_current_settings().home
    if not PREFECT_SERVER_ALLOW_EPHEMERAL_MODE.value():
        raise DiptychError(f"PREFECT_SERVER_EPHEMERAL_ENABLED is false, so a run needs a server: set {SERVER}.")
    _check_home(home)

    class OwnServer(SubprocessASGIServer):
        starts = 0

        def find_available_port(self) -> int:
            self.starts += 1
            if self.starts > _STARTS:
                raise RuntimeError("it ended at once")
            return super().find_available_port()

    server = OwnServer()
    try:
        server.start()
    except (RuntimeError, HTTPError) as error:
        server.stop()
        raise DiptychError(
            f"The Prefect server that a run starts for itself did not start ({str(error) or type(error).__name__}). "
            f"What it says of that stands above. Its database is in {home}: move it away if it is damaged. Where the "
            f"machine is slow, set PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS; or start a server yourself and "
            f"set {SERVER}."
        ) from error


def _check_certificates(known: Sequence[Setting]) -> None:
    """Read the file of authorities to trust as Prefect does, in whose error no file is named."""
    given = [(one.name, one.value) for one in known if one.name == "PREFECT_API_SSL_CERT_FILE"]
    for name, path in [*given, ("SSL_CERT_FILE", os.environ.get("SSL_CERT_FILE", ""))]:
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
