"""The alias moves with its evidence, never leaves users without a champion, and the way back is always known."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from itertools import groupby

import pytest
from forked import Forks
from mlflow import MlflowClient
from sqlalchemy import event
from sqlalchemy.orm import Session
from versions import crown, make_version, package_of

from diptych.errors import DiptychError
from diptych.registry.claim import PREFIX
from diptych.registry.decision import Check, Decision
from diptych.registry.history import earlier_champions, history, reconcile
from diptych.registry.promotion import promote, reject, repair, roll_back
from diptych.registry.registered_model import CHAMPION, PREVIOUS, RegisteredModel, model_folder

pytestmark = pytest.mark.slow

DECIDE = """
import os, signal, sys, types
from mlflow import MlflowClient
from diptych.errors import DiptychError
from diptych.registry.promotion import promote
from diptych.registry.registered_model import RegisteredModel
uri, number, against = sys.argv[1:4]
model = RegisteredModel(MlflowClient(uri, uri), "diptych", uri)
version = model.find(number)
# The gate's own takes seconds to import.
decision = types.SimpleNamespace(accepted=True, champion=against, figures=dict)
if "die" in sys.argv:
    model.set_alias = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
print("ready", flush=True)
sys.stdin.readline()
try:
    promote(model, version, decision, why="it is better")
    print("done")
except DiptychError as error:
    print(error)
"""


@pytest.fixture
def model(four):
    """With four versions."""
    return four


@pytest.fixture
def versions(model):
    return [model.find(number) for number in "1234"]


def decision(number: str, champion: str | None, accepted: bool = True) -> Decision:
    metrics = {"reranked": {"rsum": 130.0}}
    return Decision(
        "diptych", number, champion, "d" * 32, "e" * 64, "f" * 64, [Check("good", accepted, "not")], metrics
    )


def promoted(model: RegisteredModel, number: str) -> None:
    """By a gate that accepts."""
    promote(model, model.find(number), decision(number, model.aliases().get(CHAMPION)))


def told(model: RegisteredModel) -> list[tuple[str, str | None, str | None]]:
    return [(event.action, event.origin, event.target) for event in history(model)]


def champion_of(model: RegisteredModel) -> str | None:
    """The number that another program reads now."""
    question = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
    with closing(sqlite3.connect(model.uri.removeprefix("sqlite:///"))) as store:
        (found,) = store.execute(question, (model.name, CHAMPION)).fetchall() or [(None,)]
    return str(found[0]) if found[0] else None


def broken_off(model: RegisteredModel, monkeypatch, action) -> None:
    """`action` ends between the event and the alias."""

    def kill(self, alias, version):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RegisteredModel, "set_alias", kill)
        with pytest.raises(KeyboardInterrupt):
            action()


@pytest.fixture
def deciding(forks: Forks, model) -> Callable[..., subprocess.Popen[str]]:
    """Starts a process that is about to decide, once it reads a line."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = forks.python("-c", DECIDE, model.uri, *arguments)
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    return start


def test_the_first_version_becomes_champion_of_nobody(model, versions):
    promote(model, versions[0], decision("1", None))

    assert model.aliases() == {CHAMPION: "1"}
    (event,) = history(model)
    assert (event.action, event.origin, event.target, event.figures) == ("promoted", None, "1", {"rsum": 130.0})
    assert event.why == "RSUM 130.0, and there is no champion to compare with"


def test_the_next_one_takes_its_place_and_the_previous_champion_is_known(model, versions):
    crown(model, "1")

    promote(model, versions[1], decision("2", "1"), why="it knows stars")

    assert model.aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    assert history(model)[-1].why == "it knows stars"


def test_the_champion_is_not_promoted_again(model, versions):
    crown(model, "1")

    promote(model, versions[0], decision("1", None))

    assert len(history(model)) == 1


def test_what_the_gate_refuses_is_not_promoted(model, versions):
    with pytest.raises(DiptychError, match="diptych version 1 is not promoted: the gate refuses it: good: not"):
        promote(model, versions[0], decision("1", None, accepted=False))
    assert (model.aliases(), history(model)) == ({}, [])


def test_a_forced_promotion_keeps_its_reason(model, versions):
    promote(model, versions[0], decision("1", None, accepted=False), why=" the boss wants it ", forced=True)

    (event,) = history(model)
    assert (event.forced, event.why, model.aliases()[CHAMPION]) == (True, "the boss wants it", "1")


def test_a_rejection_is_written_down_and_moves_nothing(model, versions):
    crown(model, "1")

    reject(model, versions[1], decision("2", "1", accepted=False))

    event = history(model)[-1]
    assert (event.action, event.origin, event.target) == ("rejected", "1", "2")
    assert model.aliases() == {CHAMPION: "1"}


def test_a_version_that_was_compared_with_an_older_champion_is_not_promoted(model, versions):
    crown(model, "1")
    late = decision("3", "1")
    promote(model, versions[1], decision("2", "1"), why="it was there first")

    with pytest.raises(
        DiptychError,
        match=r"version 3 was compared with version 1, and meanwhile version 2 is the champion, by .* at .* "
        r"\(it was there first\)\. Promote again",
    ):
        promote(model, versions[2], late)
    assert model.aliases() == {CHAMPION: "2", PREVIOUS: "1"}


def test_a_version_that_was_compared_with_a_champion_that_is_gone_is_not_promoted(model, versions):
    crown(model, "1")
    model.remove_alias(CHAMPION)

    with pytest.raises(DiptychError, match="compared with version 1, and meanwhile no champion is the champion"):
        promote(model, versions[1], decision("2", "1"))


def test_a_version_that_was_deleted_meanwhile_leaves_the_champion(model, versions):
    crown(model, "1")
    model.client.delete_model_version(model.name, "2")

    with pytest.raises(DiptychError):
        promote(model, versions[1], decision("2", "1"))
    assert model.aliases()[CHAMPION] == "1"


def test_a_promotion_names_the_champion_that_it_replaces(model, versions):
    assert promote(model, versions[0], decision("1", None)) is None
    assert promote(model, versions[1], decision("2", "1")) == "1"
    assert promote(model, versions[1], decision("2", "1")) is None


def test_a_rollback_goes_back_one_step(model):
    crown(model, *"123")

    change = roll_back(model, why="it misses stars")

    assert (change.before, change.version) == ("3", model.find("2"))
    assert model.aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    assert (history(model)[-1].action, history(model)[-1].why) == ("rolled back", "it misses stars")


def test_a_rollback_after_which_mlflow_fails_is_told_all_the_same(model, monkeypatch):
    crown(model, "1", "2")
    set_alias = model.set_alias

    def move(alias, version):
        set_alias(alias, version)
        if alias == CHAMPION:
            monkeypatch.setattr(model, "find", lambda _: pytest.fail("MLflow was asked again"))

    monkeypatch.setattr(model, "set_alias", move)
    change = roll_back(model, why="worse")

    assert change.describe() == "diptych version 1 is the champion in place of version 2"
    assert change.version.aliases == [CHAMPION]


def test_a_rollback_from_a_champion_that_a_person_removed_names_none(model):
    crown(model, "1", "2")
    model.remove_alias(CHAMPION)

    assert roll_back(model, "1", why="worse").describe() == "diptych version 1 is the champion"


def test_rollbacks_go_back_step_by_step_until_there_is_nothing_before(model):
    crown(model, *"1234")

    assert [roll_back(model, why="worse").version.version for _ in range(3)] == ["3", "2", "1"]
    assert model.aliases() == {CHAMPION: "1"}
    with pytest.raises(DiptychError, match="has no earlier champion to go back to"):
        roll_back(model, why="worse")


@pytest.mark.parametrize("to", ["1", "first"])
def test_a_rollback_goes_back_to_the_version_that_is_named(model, to):
    model.set_alias("first", "1")
    crown(model, *"1234")

    assert roll_back(model, to, why="worse").version.version == "1"
    assert PREVIOUS not in model.aliases()


def test_a_rollback_after_a_rollback_and_another_promotion_goes_to_what_was_in_use_before(model):
    crown(model, "1", "2")
    roll_back(model, why="worse")
    promoted(model, "3")

    assert roll_back(model, why="worse").version.version == "1"


def test_what_was_rolled_back_is_nothing_to_go_back_to(model):
    crown(model, "1", "2")
    roll_back(model, why="worse")

    with pytest.raises(
        DiptychError, match=r"version 2 was no champion before version 1 \(those were: none;.*promote 2"
    ):
        roll_back(model, "2", why="it was not that bad")


def test_a_rollback_passes_over_a_version_that_was_deleted(model):
    crown(model, *"123")
    model.client.delete_model_version(model.name, "2")

    assert roll_back(model, why="worse").version.version == "1"


def test_a_rollback_to_a_deleted_version_is_refused(model):
    crown(model, *"12")
    model.client.delete_model_version(model.name, "1")

    with pytest.raises(DiptychError, match="has no earlier champion to go back to"):
        roll_back(model, why="worse")
    with pytest.raises(DiptychError, match="has no '1'"):
        roll_back(model, "1", why="worse")
    assert model.aliases()[CHAMPION] == "2"


@pytest.mark.parametrize("damage", ["gone", "other weights"])
def test_a_rollback_to_a_version_whose_package_is_not_what_was_registered_is_refused(model, tmp_path, damage):
    package = package_of(model, make_version(model, tmp_path))
    crown(model, "5", "2")
    shutil.rmtree(package)
    if damage == "other weights":
        model_folder(package).mkdir(parents=True)
        (model_folder(package) / "model.safetensors").write_bytes(b"other")

    with pytest.raises(DiptychError, match=r"version 5: its package is (gone|not what was registered)"):
        roll_back(model, why="worse")
    assert model.aliases() == {CHAMPION: "2", PREVIOUS: "5"}
    assert told(model)[-1] == ("promoted", "5", "2")


@pytest.mark.parametrize("to", ["../x", "1; rm -rf", "models:/x", "１"])
def test_a_rollback_to_what_is_no_version_is_refused(model, to):
    crown(model, "1")

    with pytest.raises(DiptychError, match="is neither a version's number nor an alias"):
        roll_back(model, to, why="worse")


def test_a_rollback_to_the_champion_itself_is_refused_as_such(model):
    crown(model, "1", "2")

    with pytest.raises(DiptychError, match="version 2 is the champion already"):
        roll_back(model, "champion", why="worse")


def test_a_promotion_that_was_broken_off_did_not_take_place(model, monkeypatch):
    crown(model, "1")
    broken_off(model, monkeypatch, lambda: promoted(model, "2"))
    assert model.aliases() == {CHAMPION: "1"}

    repair(model)

    assert told(model) == [("promoted", None, "1"), ("promoted", "1", "2"), ("broken off", "2", "1")]
    assert "broken off" in history(model)[-1].why
    assert (model.aliases(), earlier_champions(history(model))) == ({CHAMPION: "1"}, [])


def test_a_promotion_that_was_broken_off_can_be_made_again(model, monkeypatch):
    crown(model, "1")
    broken_off(model, monkeypatch, lambda: promoted(model, "2"))

    promoted(model, "2")

    assert model.aliases() == {CHAMPION: "2", PREVIOUS: "1"}
    assert roll_back(model, why="worse").version.version == "1"


def test_a_rollback_of_several_steps_that_was_broken_off_leaves_them_all(model, monkeypatch):
    crown(model, *"1234")
    broken_off(model, monkeypatch, lambda: roll_back(model, "1", why="worse"))

    assert [roll_back(model, why="worse").version.version for _ in range(3)] == ["3", "2", "1"]


def test_a_first_promotion_that_was_broken_off_leaves_no_champion(model, monkeypatch):
    broken_off(model, monkeypatch, lambda: promoted(model, "1"))

    repair(model)

    assert model.aliases() == {}
    with pytest.raises(DiptychError, match="has no earlier champion"):
        roll_back(model, why="worse")


def test_an_alias_that_was_moved_by_hand_is_what_a_rollback_comes_from(model):
    crown(model, "1", "2")
    model.set_alias(CHAMPION, "4")

    assert roll_back(model, why="worse").version.version == "2"
    assert told(model)[-2:] == [("found", "2", "4"), ("rolled back", "4", "2")]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which processes are alive")
def test_after_a_promotion_that_was_killed_the_next_decision_settles(model, versions, deciding):
    crown(model, "1")
    killed = deciding("2", "1", "die")
    killed.communicate("\n")
    assert killed.returncode == -signal.SIGKILL
    assert (model.aliases(), told(model)[-1]) == ({CHAMPION: "1"}, ("promoted", "1", "2"))

    promote(model, versions[2], decision("3", "1"))

    assert told(model)[2:] == [("broken off", "2", "1"), ("promoted", "1", "3")]
    assert model.aliases() == {CHAMPION: "3", PREVIOUS: "1"}
    assert not [key for key in model.client.get_registered_model(model.name).tags if ".claim." in key]


def test_of_two_promotions_at_once_the_later_says_what_it_found(model, deciding):
    crown(model, "1")
    both = [deciding(number, "1") for number in "23"]
    for process in both:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()

    said = [process.communicate()[0].strip() for process in both]

    (loser,) = [text for text in said if text != "done"]
    winner = str(2 + said.index("done"))
    assert f"compared with version 1, and meanwhile version {winner} is the champion" in loser
    assert "(it is better)" in loser
    assert model.aliases() == {CHAMPION: winner, PREVIOUS: "1"}
    assert told(model) == [("promoted", None, "1"), ("promoted", "1", winner)]


def test_there_is_a_champion_at_every_moment(model):
    crown(model, "1")
    seen = [champion_of(model)]

    def look(session: Session) -> None:
        seen.append(champion_of(model))

    # What others see changes at commits alone.
    event.listen(Session, "after_commit", look)
    try:
        for number in "234":
            promoted(model, number)
        for _ in range(3):
            roll_back(model, why="worse")
    finally:
        event.remove(Session, "after_commit", look)

    assert len(seen) > 50
    assert [number for number, _ in groupby(seen)] == ["1", "2", "3", "4", "3", "2", "1"]


def test_history_and_aliases_agree_after_any_decision(model):
    crown(model, *"123")
    roll_back(model, why="worse")
    before = told(model), model.aliases()

    reconcile(model)

    assert (told(model), model.aliases()) == before


def test_mending_takes_away_what_a_killed_decision_has_left_behind_its_end(model):
    crown(model, "1")
    model.client.set_registered_model_tag(model.name, f"{PREFIX}x", "left")

    repair(model)

    assert not any(name.startswith(PREFIX) for name in model.client.get_registered_model(model.name).tags)


def test_mending_what_is_settled_writes_nothing(model, monkeypatch):
    crown(model, "1", "2")
    repair(model)
    monkeypatch.setattr(MlflowClient, "set_registered_model_tag", None)
    monkeypatch.setattr(MlflowClient, "set_registered_model_alias", None)

    repair(model)


def test_where_there_is_no_registry_there_is_nothing_to_mend(model):
    other = RegisteredModel(model.client, "other", model.uri)

    repair(other)

    assert not other.exists()
