"""What the user has told Prefect, and where: which server is meant, and where an invalid setting stands.

Prefect reads the environment, then .env, prefect.toml and pyproject.toml of the current folder, then a profile. They
are read here without importing Prefect, which takes a second and fails where a setting is invalid.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from diptych.errors import DiptychError

SERVER = "PREFECT_API_URL"
_ENVIRONMENT = "the environment variable"


class Setting(NamedTuple):
    """One setting, and where it stands."""

    name: str
    """Name in the form of an environment variable, such as PREFECT_API_URL, wherever it stands."""
    value: str
    where: str
    """For people, such as "the file /home/ann/project/.env"."""
    removal: str
    """How it is put out of force."""


def settings(root: Path) -> list[Setting]:
    """Return all that the user has set, what Prefect prefers first; files are those of the project at `root`.

    Raises:
        DiptychError: a file cannot be read.
    """
    profile_path = _profiles(root)
    return [
        *(Setting(name.upper(), value, f"{_ENVIRONMENT} {name}", f"unset {name}") for name, value in _environment()),
        *_of_file(root / ".env", _read_dotenv(root / ".env")),
        *_of_file(root / "prefect.toml", _flat(_read_toml(root / "prefect.toml"))),
        *_of_file(root / "pyproject.toml", _flat(_table(_read_toml(root / "pyproject.toml"), "tool", "prefect"))),
        *_of_profile(profile_path, _read_toml(profile_path)),
    ]


def server_setting(root: Path) -> Setting | None:
    """Return the setting that names the Prefect server; None where none does, so that a run has one of its own.

    Raises:
        DiptychError: a file with settings cannot be read.
    """
    return next((one for one in settings(root) if one.name == SERVER and one.value), None)


def keep_home_in(root: Path) -> None:
    """Where no server is named, have Prefect keep what it stores in the project at `root`."""
    if os.environ.get(SERVER) == "":
        # As an empty text it would be taken for the address of a server.
        del os.environ[SERVER]
    try:
        named = server_setting(root)
    except DiptychError:
        # `prefect_server.load` reports it.
        return
    if named is None:
        os.environ.setdefault("PREFECT_HOME", str(root / ".diptych" / "prefect"))


def _environment() -> Iterator[tuple[str, str]]:
    return ((name, value) for name, value in os.environ.items() if name.upper().startswith("PREFECT_"))


def _of_file(path: Path, values: Mapping[str, str]) -> Iterator[Setting]:
    return (
        Setting(name, value, f"the file {path}", f"remove that setting from {path}") for name, value in values.items()
    )


def _of_profile(path: Path, content: Mapping[str, Any]) -> Iterator[Setting]:
    name = os.environ.get("PREFECT_PROFILE") or content.get("active") or ""
    for key, value in _table(content, "profiles", str(name)).items():
        yield Setting(key.upper(), str(value), f"the profile {name} of {path}", "set PREFECT_PROFILE=ephemeral")


def _profiles(root: Path) -> Path:
    """Return the file of profiles, found as Prefect finds it."""
    named = (
        os.environ.get("PREFECT_PROFILES_PATH"),
        _read_dotenv(root / ".env").get("PREFECT_PROFILES_PATH"),
        _read_toml(root / "prefect.toml").get("profiles_path"),
        _table(_read_toml(root / "pyproject.toml"), "tool", "prefect").get("profiles_path"),
    )
    if path := next((one for one in named if one), None):
        return root / str(path)
    if home := os.environ.get("PREFECT_HOME"):
        return Path(home) / "profiles.toml"
    try:
        path = Path.home() / ".prefect" / "profiles.toml"
        if path.is_file() and os.access(path, os.R_OK):
            return path
    except (OSError, RuntimeError):
        # A user without a home, or with one that belongs to somebody else.
        pass
    return _profiles_of_prefect()


def _profiles_of_prefect() -> Path:
    """Return the file that counts where the user has none."""
    spec = find_spec("prefect")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "settings" / "profiles.toml"


def _table(content: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return the table within tables; an empty one where there is none."""
    for key in keys:
        found = content.get(key)
        content = found if isinstance(found, Mapping) else {}
    return content


def _flat(content: Mapping[str, Any], prefix: str = "PREFECT") -> dict[str, str]:
    """Return the values of nested tables by the names that they have in the environment."""
    found: dict[str, str] = {}
    for key, value in content.items():
        name = f"{prefix}_{key.upper()}"
        found |= _flat(value, name) if isinstance(value, Mapping) else {name: str(value)}
    return found


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DiptychError(f"{path} cannot be read: {error}. Prefect takes settings from it; correct it.") from None


def _read_dotenv(path: Path) -> dict[str, str]:
    from dotenv import dotenv_values

    try:
        values = dotenv_values(path) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise DiptychError(f"{path} cannot be read: {error}. Prefect takes settings from it; correct it.") from None
    return {name.upper(): value or "" for name, value in values.items() if name.upper().startswith("PREFECT_")}
