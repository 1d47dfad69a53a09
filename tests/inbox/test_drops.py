"""Names in a drop: none of them leads out of its folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.inbox.drops import name_problem


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "a/../../evil",
        "/etc/passwd",
        "a//b",
        "a/./b",
        "..",
        ".",
        "",
        "a/",
        "a\\..\\b",
        "a\0b",
        "a\nb",
        "b" * 256,
    ],
)
def test_names_that_could_leave_their_folder_are_unsafe(name):
    assert name_problem(["captions.csv", name])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a/../../b", "leads out of its folder"),
        ("/etc/passwd", "leads out of its folder"),
        ("a//b", "an empty part"),
        ("a\\b", "a backslash"),
        ("a\nb", "a control character"),
    ],
)
def test_of_an_unsafe_name_only_what_is_true_is_said(name, words):
    assert words in name_problem([name])


def test_a_file_that_is_a_folder_too_is_unsafe():
    assert "'a' is a file" in name_problem(["a", "a/b.png"])


def test_usual_names_are_safe():
    assert (
        name_problem(
            [
                "captions.json",
                "images/a.png",
                "images/.b..png",
                "_MG_1.jpg",
                "Übung/图 1.jpg",
                "at 9.41\u202fAM 👩\u200d🔬.png",
            ]
        )
        == ""
    )


@settings(deadline=None)
@given(st.lists(st.sampled_from([*"ab./\\\0", "..", "/../"]), max_size=8).map("".join))
def test_a_name_that_passes_stays_in_its_folder(name):
    if not name_problem([name]):
        folder = Path("/inbox/drop")
        assert os.path.normpath(folder / name) == str(folder / name)
        assert (folder / name).is_relative_to(folder)
        assert folder / name != folder
