"""`diptych reproduce`: the verdict for people and for programs, and its exit code."""

import json
from dataclasses import replace

import pytest
from command import diptych

from diptych.registry import reproduction
from diptych.registry.reproduction import Reproduction
from diptych.registry.verdict import Finding

SAME = Reproduction(
    name="diptych",
    version="3",
    git_sha="a" * 40,
    from_cache=False,
    findings=[Finding("weights", True, "b" * 64), Finding("metrics", True)],
    packages=[],
    threads=None,
    folder=None,
)
OTHER = replace(
    SAME,
    findings=[
        Finding("params", False, "b" * 64, "c" * 64, detail="the commit's params.yaml is another"),
        Finding("weights", None),
    ],
)

pytestmark = pytest.mark.usefixtures("inside")


@pytest.fixture
def result(monkeypatch):
    """Sets the result of each reproduction, and returns the list of what was asked for."""

    def become(made: Reproduction) -> list[tuple[str, dict[str, bool]]]:
        asked: list[tuple[str, dict[str, bool]]] = []

        def reproduce(workspace, params, which, *, on_line, **options):
            asked.append((which, options))
            on_line("Running stage 'train':")
            return made

        monkeypatch.setattr(reproduction, "reproduce", reproduce)
        return asked

    return become


def test_equal_bits_are_a_table_and_exit_code_0(result, capsys):
    asked = result(SAME)

    assert diptych("reproduce", "champion") == 0

    output, errors = capsys.readouterr()
    assert asked == [("champion", {"from_cache": False, "keep": False})]
    assert output.splitlines() == [
        "diptych version 3, made again, of commit aaaaaaaaaa",
        "",
        "weights   identical     bbbbbbbbbbbbbbbb",
        "metrics   identical",
        "",
        "Identical: it was computed anew, and is the same to the bit.",
    ]
    assert errors == "Running stage 'train':\n"


def test_other_bits_are_named_and_exit_code_1(result, capsys):
    result(OTHER)

    assert diptych("reproduce", "3") == 1

    lines = capsys.readouterr().out.splitlines()
    assert lines[2:5] == [
        "params    DIFFERENT     bbbbbbbbbbbbbbbb, now cccccccccccccccc",
        "          → the commit's params.yaml is another",
        "weights   not compared",
    ]
    assert lines[-1] == "Not identical: params."


def test_the_verdict_as_json_is_alone_on_stdout(result, capsys):
    result(OTHER)

    assert diptych("reproduce", "3", "--json") == 1

    verdict = json.loads(capsys.readouterr().out)
    assert (verdict["identical"], verdict["version"], verdict["from_cache"]) == (False, "3", False)
    assert {finding["what"]: finding["identical"] for finding in verdict["findings"]} == {
        "params": False,
        "weights": None,
    }


def test_what_is_stored_is_compared_without_training(result, capsys):
    asked = result(replace(SAME, from_cache=True, folder="/srv/again"))

    assert diptych("reproduce", "3", "--from-cache", "--keep") == 0

    output = capsys.readouterr().out
    assert asked == [("3", {"from_cache": True, "keep": True})]
    assert output.startswith("diptych version 3, as it is kept, of commit ")
    assert "Kept in /srv/again; `git worktree remove --force /srv/again` removes it." in output
    assert output.endswith("Identical: what is kept is what was registered.\n")


def test_what_may_explain_other_bits_is_said(result, capsys):
    packages = [f"package{index} 2, not 1" for index in range(5)]
    result(replace(OTHER, packages=packages, threads=(8, 2)))

    assert diptych("reproduce", "3") == 1

    output = capsys.readouterr().out
    assert "locks: package0 2, not 1; package1 2, not 1; package2 2, not 1 and 2 more." in output
    assert "Other packages may compute other bits; `make setup` in that commit brings its own." in output
    assert "It was computed by 8 CPU threads, here by 2: the last bits may differ." in output


def test_other_packages_explain_nothing_where_all_is_equal(result, capsys):
    result(replace(SAME, packages=["click 8, not 7"]))

    assert diptych("reproduce", "3") == 0

    output = capsys.readouterr().out
    assert "Installed are other packages than aaaaaaaaaa locks: click 8, not 7." in output
    assert "may compute other bits" not in output
