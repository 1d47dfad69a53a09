"""Prefect's settings as they are read here, and as Prefect reads them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prefect.settings.models.api import APISettings

from diptych.errors import DiptychError
from diptych.project.prefect_settings import keep_home_in, server_setting

URL = "https://api.example/api"
PROFILES = """
active = "team"
[profiles.team]
PREFECT_API_URL = "https://api.example/api"
[profiles.other]
PREFECT_API_URL = "https://other.example/api"
"""
FILES = {
    ".env": f"PREFECT_API_URL={URL}\n",
    "prefect.toml": f'[api]\nurl = "{URL}"\n',
    "pyproject.toml": f'[tool.prefect.api]\nurl = "{URL}"\n',
}


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project, which is the current folder, of a user who has set nothing."""
    for name in [one for one in os.environ if one.upper().startswith("PREFECT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def profiles(folder: Path) -> Path:
    """The file of profiles in `folder`."""
    folder.mkdir(parents=True)
    path = folder / "profiles.toml"
    path.write_text(PROFILES)
    return path


def test_who_has_set_nothing_has_a_server_of_each_run_that_is_kept_in_the_project(root: Path) -> None:
    assert server_setting(root) is None
    keep_home_in(root)
    assert os.environ["PREFECT_HOME"] == str(root / ".diptych" / "prefect")
    assert server_setting(root) is None


@pytest.mark.parametrize("name", FILES)
def test_a_server_may_be_named_in_a_file_of_the_project(root: Path, name: str) -> None:
    (root / name).write_text(FILES[name])
    setting = server_setting(root)
    assert setting is not None
    assert setting.value == URL == APISettings().url
    assert setting.where == f"the file {root / name}"
    keep_home_in(root)
    assert "PREFECT_HOME" not in os.environ


def test_the_environment_goes_before_files_and_these_before_a_profile(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profiles(root / "home" / ".prefect")
    expected = [f"the profile team of {root}/home/.prefect/profiles.toml"]
    for name in reversed(FILES):
        (root / name).write_text(FILES[name])
        expected.append(f"the file {root / name}")
        setting = server_setting(root)
        assert setting is not None
        assert setting.where == expected[-1]
    monkeypatch.setenv("PREFECT_API_URL", "http://first.example/api")
    setting = server_setting(root)
    assert setting is not None
    assert setting.value == "http://first.example/api" == APISettings().url
    assert setting.removal == "unset PREFECT_API_URL"


@pytest.mark.parametrize("chosen", ["", "other", "no-such"])
@pytest.mark.parametrize("variable", ["PREFECT_HOME", "PREFECT_PROFILES_PATH"])
def test_a_profile_is_found_as_prefect_finds_it(
    root: Path, monkeypatch: pytest.MonkeyPatch, variable: str, chosen: str
) -> None:
    path = profiles(root / "own")
    monkeypatch.setenv(variable, str(path.parent if variable == "PREFECT_HOME" else path))
    monkeypatch.setenv("PREFECT_PROFILE", chosen)
    setting = server_setting(root)
    assert (setting and setting.value) == APISettings().url
    if setting:
        assert setting.where == f"the profile {chosen or 'team'} of {path}"
        assert setting.removal == "set PREFECT_PROFILE=ephemeral"


def test_a_profile_in_the_users_home_names_the_server(root: Path) -> None:
    path = profiles(root / "home" / ".prefect")
    setting = server_setting(root)
    assert setting is not None
    assert setting.where == f"the profile team of {path}"
    keep_home_in(root)
    assert "PREFECT_HOME" not in os.environ


def test_an_empty_address_is_none(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "")
    keep_home_in(root)
    assert "PREFECT_API_URL" not in os.environ
    assert "PREFECT_HOME" in os.environ


@pytest.mark.parametrize("name", [*FILES, "home/.prefect/profiles.toml"])
def test_a_damaged_file_is_named(root: Path, name: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"\xff[")
    with pytest.raises(DiptychError, match=f"^{root / name} cannot be read: "):
        server_setting(root)
    # Commands that do not use Prefect are not kept from their work.
    keep_home_in(root)


def test_tables_of_another_form_are_not_read(root: Path) -> None:
    (root / "pyproject.toml").write_text("tool = 3\n")
    (root / "prefect.toml").write_text("api = 3\n")
    assert server_setting(root) is None
