"""Errors of an object store are told with what was asked for."""

from __future__ import annotations

import errno
import sys

import pytest

from diptych.errors import DiptychError
from diptych.remote import errors_explained, file_system


def test_without_s3fs_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(DiptychError, match="A collection in S3 needs s3fs: install diptych with its extra `stack`"):
        file_system("A collection")


def test_errors_of_the_store_name_it_and_those_of_the_disk_stay() -> None:
    with (
        pytest.raises(DiptychError, match=r"The inbox s3://b cannot be read: no such bucket\. Check its name"),
        errors_explained("The inbox s3://b"),
    ):
        raise OSError("no such bucket")
    with pytest.raises(OSError, match="full"), errors_explained("The inbox s3://b"):
        raise OSError(errno.ENOSPC, "full", "/here")
