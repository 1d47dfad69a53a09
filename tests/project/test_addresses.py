"""Addresses are shown without what would let somebody in."""

import pytest

from diptych.project.addresses import without_secret, without_secrets


def test_an_address_is_shown_without_its_password():
    assert without_secret("http://me:secret@mlflow.example/x") == "http://mlflow.example/x"


@pytest.mark.parametrize(
    "uri",
    [
        "http://me:secret@host/",
        "postgresql://host/db?user=me&password=secret",
        "mssql+pyodbc:///?odbc_connect=DRIVER%3D1%3BPWD%3Dsecret",
    ],
)
def test_an_address_is_shown_without_its_secrets(uri):
    assert "secret" not in without_secret(uri)


def test_a_file_is_shown_with_its_whole_path():
    assert without_secret("sqlite:////home/me@home/mlflow.db") == "sqlite:////home/me@home/mlflow.db"


@pytest.mark.parametrize("proxy", ["ann:hunt/er@2@proxy:3128", "ann:h://unter@proxy:3128"])
def test_an_address_without_a_scheme_loses_its_password(proxy):
    assert without_secret(proxy) == "proxy:3128"
    assert without_secret(f"http://{proxy}") == "http://proxy:3128"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("no access to https://ada:p@ss@host/x.git", "no access to https://host/x.git"),
        ("s3://bucket/x?X-Amz-Signature=abc failed", "s3://bucket/x failed"),
        ("'http://token@host/?key=abc': 403", "'http://host/': 403"),
        ("nothing of the kind @ all?", "nothing of the kind @ all?"),
    ],
)
def test_a_message_is_shown_without_secrets_of_its_addresses(said, shown):
    assert without_secrets(said) == shown
