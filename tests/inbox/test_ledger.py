"""The ledger: what became of a drop is kept, and can be lost."""

import json

import pytest

from diptych.inbox.drops import Drop
from diptych.inbox.ledger import Taken, note, pending
from diptych.workspace import Workspace

FIRST, SECOND = Drop("a", "1" * 64, "a"), Drop("b", "2" * 64, "b")


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / ".diptych").mkdir()
    return Workspace(tmp_path)


def test_a_drop_that_is_noted_is_not_pending(workspace):
    note(workspace, FIRST, Taken("a", "refused", "no image"))

    assert pending(workspace, [FIRST, SECOND]) == [SECOND]
    (entry,) = json.loads((workspace.local / "inbox.json").read_text())
    assert {"name": "a", "outcome": "refused", "reason": "no image"}.items() <= entry.items()
    assert entry["when"].endswith("+00:00")


def test_a_drop_of_the_same_name_and_other_content_is_pending(workspace):
    note(workspace, FIRST, Taken("a", "taken"))

    assert pending(workspace, [Drop("a", "3" * 64, "a")])


@pytest.mark.parametrize("content", ["", "[", "{}", "[3]", '[{"name": "a"}]', '"text"'])
def test_a_damaged_ledger_is_begun_anew(workspace, content):
    (workspace.local / "inbox.json").write_text(content)

    assert pending(workspace, [FIRST]) == [FIRST]
    note(workspace, FIRST, Taken("a", "taken"))
    assert pending(workspace, [FIRST]) == []


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        (Taken("a", "refused", "it is bad"), "drop a is refused: it is bad"),
        (Taken("a", "known"), "drop a brings nothing new"),
        (Taken("a", "taken", images=2000, captions=5, quarantined=1), "2,000 images and 5 captions, of which 1 are"),
    ],
)
def test_what_became_of_a_drop_is_one_line(taken, said):
    assert said in taken.describe()
