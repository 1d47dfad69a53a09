"""The user's settings of Prefect: the server that they name, and the file in which each stands.

Prefect reads the environment, then .env, prefect.toml and pyproject.toml of the current folder, then a profile. They
are read here without importing Prefect: the import takes a second, and fails where a setting is invalid.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from diptych.errors import DiptychError

SERVER = "PREFECT_API_URL"


class Setting(NamedTuple):
    """A setting of Prefect, and its source."""

    name: str
    """Name in the form of an environment variable, such as PREFECT_API_URL, whatever the source."""
    value: str
    where: str
    """Source for messages, such as "the file /home/ann/project/.env"."""
    removal: str
    """Instruction that puts the setting out of force."""


def settings(root: Path) -> list[Setting]:
    """Return the user's settings, those that Prefect prefers first; the files are those of the project at `root`.

    Raises:
        DiptychError: a file cannot be read.
    """
    before_profiles = [
        *_of_environment(),
        *_of_file(root / ".env", _read_dotenv(root / ".env")),
        *_of_file(root / "prefect.toml", _flat(_read_toml(root / "prefect.toml"))),
        *_of_file(root / "pyproject.toml", _flat(_table(_read_toml(root / "pyproject.toml"), "tool", "prefect"))),
    ]
    paths = (item.value for item in before_profiles if item.name == "PREFECT_PROFILES_PATH" and item.value)
    profiles = root / path if (path := next(paths, "")) else _usual_profiles()
    return [*before_profiles, *_of_profile(profiles, _read_toml(profiles))]


def server_setting(root: Path) -> Setting | None:
    """Return the setting that names the Prefect server; None where none does, so that a run has one of its own.

    Raises:
        DiptychError: a file with settings cannot be read.
    """
    return next((setting for setting in settings(root) if setting.name == SERVER and setting.value), None)


def keep_home_in(root: Path) -> None:
    """Let Prefect keep its files in the project at `root`, unless a server is named."""
    if os.environ.get(SERVER) == "":
        # Prefect would take an empty text for the address of a server.
        del os.environ[SERVER]
    try:
        named = server_setting(root)
    except DiptychError:
        # `orchestration.server.load` reports it.
        return
    if named is None:
        os.environ.setdefault("PREFECT_HOME", str(root / ".diptych" / "prefect"))


def _of_environment() -> Iterator[Setting]:
    for name, value in os.environ.items():
        if name.upper().startswith("PREFECT_"):
            yield Setting(name.upper(), value, f"the environment variable {name}", f"unset {name}")


def _of_file(path: Path, values: Mapping[str, str]) -> Iterator[Setting]:
    for name, value in values.items():
        yield Setting(name, value, f"the file {path}", f"remove that setting from {path}")


def _of_profile(path: Path, content: Mapping[str, Any]) -> Iterator[Setting]:
    name = os.environ.get("PREFECT_PROFILE") or content.get("active") or ""
    for key, value in _table(content, "profiles", str(name)).items():
        yield Setting(key.upper(), str(value), f"the profile {name} of {path}", "set PREFECT_PROFILE=ephemeral")


def _usual_profiles() -> Path:
    """Return the file of profiles where no setting names it, looked for as Prefect does."""
    if home := os.environ.get("PREFECT_HOME"):
        return Path(home) / "profiles.toml"
    try:
        path = Path.home() / ".prefect" / "profiles.toml"
        if path.is_file() and os.access(path, os.R_OK):
            return path
    except (OSError, RuntimeError):
        # A user without a home, or with one that belongs to somebody else.
        pass
    # The file in the package counts where the user has none.
    spec = find_spec("prefect")
    assert spec is not None
    return Path(str(spec.origin)).parent / "settings" / "profiles.toml"


def _table(content: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return the table within tables; an empty one where there is none."""
    for key in keys:
        content = value if isinstance(value := content.get(key), Mapping) else {}
    return content


def _flat(content: Mapping[str, Any], prefix: str = "PREFECT") -> dict[str, str]:
    """Return the values of nested tables by the names that they have in the environment."""
    flat: dict[str, str] = {}
    for key, value in content.items():
        name = f"{prefix}_{key.upper()}"
        flat |= _flat(value, name) if isinstance(value, Mapping) else {name: str(value)}
    return flat


def _read_toml(path: Path) -> dict[str, Any]:
    with _readable(path):
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _read_dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    from dotenv import dotenv_values

    with _readable(path):
        values = dotenv_values(path)
    return {name.upper(): value or "" for name, value in values.items() if name.upper().startswith("PREFECT_")}


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise DiptychError(f"{path} cannot be read: {error}. Prefect takes settings from it; correct it.") from None
