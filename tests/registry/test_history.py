"""History tells every decision, and where the way back leads, whatever was broken off or done by hand."""

from __future__ import annotations

import getpass
import json
import logging
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from versions import crown

from diptych.errors import DiptychError
from diptych.registry import history as module
from diptych.registry.history import Action, Event, earlier_champions, effective_events, history, reconcile, record
from diptych.registry.registered_model import CHAMPION, PREVIOUS, RegisteredModel


def moves(*steps: tuple[Action, str | None, str | None]) -> list[Event]:
    return [Event(action, origin, target, "") for action, origin, target in steps]


def test_an_event_is_read_as_it_was_written(model):
    event = Event("promoted", None, "1", 'it is "better" – bésser', {"rsum": 130.5}, forced=True)

    record(model, event)

    assert history(model) == [event]


def test_events_are_told_in_their_order(model):
    events = [Event("rejected", None, str(number), "no") for number in range(12)]

    for event in events:
        record(model, event)

    assert history(model) == events


def test_an_event_says_who_and_when(model, monkeypatch):
    monkeypatch.setenv("DIPTYCH_USER", "ada")

    record(model, Event("promoted", None, "1", ""))

    (found,) = history(model)
    assert (found.who, found.when[:2], found.when[-6:]) == ("ada", "20", "+00:00")


def test_where_the_system_knows_no_user_the_event_says_so(monkeypatch):
    def fail() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", fail)
    monkeypatch.delenv("DIPTYCH_USER", raising=False)

    assert Event("promoted", None, "1", "").who == "unknown"


@pytest.mark.parametrize("letter", ["x", "\x01", "ü", '"', "🙂"])
def test_a_long_reason_fits_into_a_tag(model, monkeypatch, letter):
    monkeypatch.setenv("DIPTYCH_USER", letter * 10_000)

    record(model, Event("promoted", None, "1", letter * 10_000))

    (text,) = model.client.get_registered_model(model.name).tags.values()
    assert len(text.encode()) <= 5_000
    assert len(history(model)[0].why) == 1_000


@pytest.mark.parametrize("why", ["it is\x1b[2Jbetter", "it is\nbetter", "it is\udcffbetter", "it is\x00better"])
def test_a_reason_is_one_line_that_no_terminal_obeys(model, why):
    record(model, Event("promoted", None, "1", why))

    assert history(model)[0].why in ("it is better", "it is [2Jbetter")


@pytest.mark.parametrize("text", ["{", "[]", '{"action": "promoted"}', '{"of": "another version"}'])
def test_what_is_no_event_is_left_out_and_named(model, caplog, text):
    record(model, Event("promoted", None, "1", ""))
    key = f"{module.PREFIX}00000002.0123abcd"
    model.client.set_registered_model_tag(model.name, key, text)

    with caplog.at_level(logging.WARNING):
        assert len(history(model)) == 1
    assert key in caplog.text


def test_tags_of_others_are_no_events(model):
    model.client.set_registered_model_tag(model.name, "diptych.history.note", "{}")
    model.client.set_registered_model_tag(model.name, "owner", "ada")

    assert history(model) == []


def test_a_model_that_does_not_exist_has_no_history(model):
    other = RegisteredModel(model.client, "other", model.uri)

    assert history(other) == []


def test_where_history_and_aliases_agree_nothing_is_written(four):
    crown(four, "1", "2")
    reconcile(four)
    before = history(four)

    reconcile(four)

    assert (history(four), four.aliases()) == (before, {CHAMPION: "2", PREVIOUS: "1"})


def test_an_alias_that_was_moved_by_hand_is_found(four):
    crown(four, "1", "2")
    four.set_alias(CHAMPION, "3")

    reconcile(four)

    found = history(four)[-1]
    assert (found.action, found.origin, found.target) == ("found", "2", "3")
    assert four.aliases() == {CHAMPION: "3", PREVIOUS: "2"}


def test_what_was_broken_off_is_told_from_what_was_moved_by_hand(four):
    crown(four, "1")
    record(four, Event("promoted", "1", "2", ""))

    reconcile(four)
    four.set_alias(CHAMPION, "3")
    reconcile(four)

    told = [(event.action, event.origin, event.target) for event in history(four)[1:]]
    assert told == [("promoted", "1", "2"), ("broken off", "2", "1"), ("found", "1", "3")]
    assert [event.action for event in effective_events(history(four))] == ["promoted", "found"]


def test_an_alias_that_was_deleted_by_hand_is_found_missing(four):
    crown(four, "1", "2")
    four.remove_alias(CHAMPION)

    reconcile(four)

    assert history(four)[-1].target is None
    assert PREVIOUS in four.aliases()


def test_a_champion_whose_version_was_deleted_is_found_missing_and_the_one_before_is_known(four):
    crown(four, "1", "2", "3")
    reconcile(four)
    four.client.delete_model_version(four.name, "3")

    reconcile(four)

    found = history(four)[-1]
    assert (found.origin, found.target) == ("3", None)
    assert four.aliases() == {PREVIOUS: "2"}


def test_a_first_promotion_that_was_broken_off_leaves_nothing_to_go_back_to(four):
    record(four, Event("promoted", None, "1", ""))

    reconcile(four)

    assert earlier_champions(history(four)) == []
    assert four.aliases() == {}


def test_the_previous_champion_is_one_that_there_is_and_not_the_champion_itself(four):
    crown(four, "1", "2", "1")
    reconcile(four)
    assert four.aliases() == {CHAMPION: "1", PREVIOUS: "2"}
    four.client.delete_model_version(four.name, "2")

    reconcile(four)

    assert four.aliases() == {CHAMPION: "1"}


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([("promoted", None, "1"), ("promoted", "1", "2"), ("promoted", "2", "3")], ["1", "2"]),
        ([("promoted", None, "1"), ("promoted", "1", "2"), ("rolled back", "2", "1")], []),
        ([("promoted", None, "1"), ("rejected", "1", "2"), ("promoted", "1", "3")], ["1"]),
        # A rollback of several steps that was broken off: all three are there to go back to.
        (
            [
                *(("promoted", str(n), str(n + 1)) for n in range(1, 4)),
                ("rolled back", "4", "2"),
                ("broken off", "2", "4"),
            ],
            ["1", "2", "3"],
        ),
        ([("promoted", None, "1"), ("promoted", "1", "2"), ("found", "2", "1"), ("promoted", "1", "2")], ["1"]),
    ],
)
def test_earlier_champions_are_those_that_a_rollback_goes_back_to(steps, expected):
    assert earlier_champions(moves(*steps)) == expected


@dataclass
class Stack:
    """The slow, obvious twin: the champion lies on those before it, and what is broken off changes nothing."""

    champion: str | None = None
    below: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    def promote(self, target: str) -> None:
        if target != self.champion:
            self._say("promoted", target)
            self.below += [self.champion] if self.champion else []
            self.champion = target

    def roll_back(self, place: int) -> None:
        choices = [at for at, number in enumerate(self.below) if number != self.champion]
        if choices:
            # As `rollback --to` does: to where that version was champion last.
            target = self.below[choices[place % len(choices)]]
            self._say("rolled back", target)
            while self.below.pop() != target:
                pass
            self.champion = target

    def break_off(self, action: Action, target: str) -> None:
        if target != self.champion and (action == "promoted" or target in self.below):
            self._say(action, target)
            self.events.append(Event("broken off", target, self.champion, ""))

    def _say(self, action: Action, target: str) -> None:
        self.events.append(Event(action, self.champion, target, ""))


NUMBERS = st.sampled_from("12345")
STEPS = st.one_of(
    st.tuples(st.just("promote"), NUMBERS),
    st.tuples(st.just("roll back"), st.integers(0, 5)),
    st.tuples(st.just("break off"), st.sampled_from(["promoted", "rolled back"]), NUMBERS),
    st.tuples(st.just("reject"), NUMBERS),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(STEPS, max_size=20))
def test_earlier_champions_are_those_of_a_stack(steps):
    twin = Stack()
    for step in steps:
        match step:
            case ("promote", target):
                twin.promote(target)
            case ("roll back", place):
                twin.roll_back(place)
            case ("break off", action, target):
                twin.break_off(action, target)
            case (_, target):
                twin.events.append(Event("rejected", twin.champion, target, ""))

    assert earlier_champions(twin.events) == twin.below


def test_an_event_is_plain_values():
    event = Event("promoted", "1", "2", "better", {"rsum": 1.0})

    assert Event(**json.loads(json.dumps(event.to_json()))) == event


def test_a_store_that_is_damaged_is_an_error_for_the_user(model, tmp_path):
    (tmp_path / "project" / ".diptych" / "mlflow.db").write_bytes(b"no database" * 1000)

    with pytest.raises(DiptychError, match=r"mlflow\.db"):
        history(model)
