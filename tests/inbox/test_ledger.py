"""The ledger: what became of a drop is kept, and can be lost."""

import json
from typing import cast

import pytest

from diptych.errors import DiptychError
from diptych.inbox.drops import Drop
from diptych.inbox.ledger import DropResult, has_unreported, new_drops, record_result, report_to_history
from diptych.project.workspace import Workspace
from diptych.registry import history
from diptych.registry.registered_model import RegisteredModel

FIRST, SECOND = Drop("a", "1" * 64, "a"), Drop("b", "2" * 64, "b")


@pytest.fixture
def workspace(tmp_path):
    (tmp_path / ".diptych").mkdir()
    return Workspace(tmp_path)


def test_a_drop_that_is_noted_is_not_pending(workspace):
    record_result(workspace, FIRST, DropResult("a", "refused", "no image"))

    assert new_drops(workspace, [FIRST, SECOND]) == [SECOND]
    (entry,) = json.loads((workspace.local / "inbox.json").read_text())
    assert {"name": "a", "outcome": "refused", "reason": "no image"}.items() <= entry.items()
    assert entry["when"].endswith("+00:00")


def test_a_drop_of_the_same_name_and_other_content_is_pending(workspace):
    record_result(workspace, FIRST, DropResult("a", "taken"))

    assert new_drops(workspace, [Drop("a", "3" * 64, "a")])


@pytest.mark.parametrize("content", ["", "[", "{}", "[3]", '[{"name": "a"}]', '"text"'])
def test_a_damaged_ledger_is_begun_anew(workspace, content):
    (workspace.local / "inbox.json").write_text(content)

    assert new_drops(workspace, [FIRST]) == [FIRST]
    record_result(workspace, FIRST, DropResult("a", "taken"))
    assert new_drops(workspace, [FIRST]) == []


def test_drops_that_brought_nothing_are_told_once_also_after_a_run_that_ended_early(workspace, monkeypatch):
    record_result(workspace, FIRST, DropResult("a", "refused", "it is bad"))
    record_result(workspace, SECOND, DropResult("b", "taken"))
    record_result(workspace, Drop("c", "3" * 64, "c"), DropResult("c", "known"))
    when = json.loads((workspace.local / "inbox.json").read_text())[0]["when"]
    told: list[tuple[str, str, str]] = []
    unreachable, model = cast(RegisteredModel, None), cast(RegisteredModel, "the model")

    def record(model, event):
        if len(told) == 1 and not model:
            raise DiptychError("MLflow is away")
        told.append((event.action, event.why, event.when))

    monkeypatch.setattr(history, "record", record)

    with pytest.raises(DiptychError):
        report_to_history(workspace, unreachable)
    assert has_unreported(workspace)
    report_to_history(workspace, model)
    report_to_history(workspace, model)

    assert [(action, why) for action, why, _ in told] == [
        ("drop refused", "drop a is refused: it is bad"),
        ("drop known", "drop c brings nothing new"),
    ]
    assert told[0][2] == when
    assert not has_unreported(workspace)


@pytest.mark.parametrize(
    ("taken", "said"),
    [
        (DropResult("a", "refused", "it is bad"), "drop a is refused: it is bad"),
        (DropResult("a", "known"), "drop a brings nothing new"),
        (
            DropResult("a", "taken", images=2000, captions=5, quarantined=1),
            "2,000 images and 5 captions, of which 1 are",
        ),
    ],
)
def test_what_became_of_a_drop_is_one_line(taken, said):
    assert said in taken.describe()
