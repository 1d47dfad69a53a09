"""What becomes of a version: asked about, kept, promoted or rejected, and not asked about twice."""

from __future__ import annotations

import numpy as np
import pytest
from tiny import write_prepared
from versions import crown, make_version, write_accepted

from diptych.config import Gate, Params
from diptych.errors import DiptychError
from diptych.project.workspace import Workspace
from diptych.registry import gate, measuring
from diptych.registry.decision import Check, Decision
from diptych.registry.history import Event, history, record
from diptych.registry.lifecycle import compare_versions, gate_and_promote, needs_decision
from diptych.registry.measuring import Measured, gallery
from diptych.registry.promotion import promote, repair
from diptych.registry.registered_model import CHAMPION, PREVIOUS, RegisteredModel
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.ranking import Outcomes, Ranks

IMAGES = 40
PARAMS = Params.model_validate({"threads": 1, "device": "cpu"})
OTHER_GATE = Gate.model_validate({"guard_sets": {"old": {"path": "guards/old", "md5": f"{'0' * 32}.dir"}}})


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Workspace:
    """With a prepared test split of 40 images; tests only look at it."""
    workspace = Workspace(tmp_path_factory.mktemp("lifecycle"))
    write_prepared(workspace.prepared, train=4, val=4, test=IMAGES)
    write_accepted(workspace)
    return workspace


@pytest.fixture
def model(four):
    """With four versions."""
    return four


@pytest.fixture
def refused(monkeypatch) -> set[str]:
    """The numbers of those that the gate refuses; it accepts the others."""
    numbers: set[str] = set()

    def decide(model: RegisteredModel, version, workspace, params, **_) -> Decision:
        champion = model.champion()
        checks = [Check("it is good", version.version not in numbers, "so so")]
        metrics = {"reranked": {"rsum": 130.0}}
        sha256s = "e" * 64, params.gate.sha256
        return Decision(model.name, version.version, champion and champion.version, "d" * 32, *sha256s, checks, metrics)

    monkeypatch.setattr(gate, "decide", decide)
    return numbers


@pytest.fixture
def measured(project, monkeypatch) -> dict[str, int]:
    """How many images each version misses, by its number; without an entry it finds all."""
    misses: dict[str, int] = {}
    own = gallery(project, PARAMS).image_of_caption

    def measure(folder, workspace, params, name, guard_sets=()):
        few = misses.get(name.removeprefix("version "), 0)
        ranks = (np.where(of < few, 30, 1) for of in (np.arange(IMAGES), own))
        both = Ranks(*(Outcomes.one_relevant(one, np.zeros(len(one), bool)) for one in ranks))
        return Measured(both, {"reranked": metrics_from_ranks(*both)}, {})

    monkeypatch.setattr(gate, "measure", measure)
    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(gate, "answer_time", lambda package: {"pair_ms": 20.0, "load_s": 1.5})
    return misses


def ask(model, number: str, workspace: Workspace | None = None, **options):
    return gate_and_promote(model, model.find(number), workspace or Workspace(), PARAMS, **options)


def actions(model) -> list[tuple[str, str | None, str | None]]:
    return [(event.action, event.origin, event.target) for event in history(model)]


def test_what_the_gate_accepts_is_promoted_and_known_as_accepted(model, refused):
    crown(model, "1")

    considered = ask(model, "2")

    assert (considered.outcome, considered.before) == ("promoted", "1")
    assert (considered.version.aliases, considered.version.tags["gate"]) == ([CHAMPION], "accepted")
    assert model.aliases() == {CHAMPION: "2", PREVIOUS: "1"}


def test_a_persons_reason_goes_before_the_gates(model, refused):
    ask(model, "1", why="it knows stars")

    assert history(model)[-1].why == "it knows stars"


def test_what_the_gate_refuses_is_rejected_and_known_as_such(model, refused):
    crown(model, "1")
    refused.add("2")

    considered = ask(model, "2")

    assert (considered.outcome, considered.before) == ("rejected", "1")
    assert (considered.version.aliases, considered.version.tags["gate"]) == ([], "rejected")
    assert actions(model)[-1] == ("rejected", "1", "2")
    assert model.aliases() == {CHAMPION: "1"}


def test_a_first_version_that_is_refused_leaves_no_champion(model, refused):
    refused.add("1")

    assert (ask(model, "1").outcome, model.champion()) == ("rejected", None)
    assert actions(model) == [("rejected", None, "1")]


def test_a_refused_version_is_promoted_by_force_with_a_reason(model, refused):
    refused.add("1")

    considered = ask(model, "1", force=True, why="the old one is worse")

    (event,) = history(model)
    assert (considered.outcome, event.forced, event.why) == ("promoted", True, "the old one is worse")
    assert considered.version.tags["gate"] == "rejected"


def test_force_without_a_reason_is_refused_before_the_gate_is_asked(model, monkeypatch):
    monkeypatch.setattr(gate, "decide", lambda *_, **__: pytest.fail("the gate was asked"))

    with pytest.raises(DiptychError, match="needs a reason"):
        ask(model, "1", force=True, why=" ")


def test_what_passes_without_force_is_not_known_as_forced(model, refused):
    ask(model, "1", force=True, why="in any case")

    assert history(model)[-1].forced is False


def test_by_hand_what_is_accepted_waits_for_a_person(model, refused):
    crown(model, "1")

    considered = ask(model, "2", promotion="manual")

    assert considered.outcome == "accepted"
    assert "may become champion: `diptych promote 2`" in considered.describe()
    assert model.aliases() == {CHAMPION: "1"}


def test_by_hand_what_is_refused_is_rejected(model, refused):
    refused.add("2")

    assert ask(model, "2", promotion="manual").outcome == "rejected"
    assert actions(model) == [("rejected", None, "2")]


def test_whoever_says_never_gets_no_promotion(model, refused):
    ask(model, "1", promotion="never")

    assert model.champion() is None


def test_the_champion_is_not_asked_about(model, monkeypatch):
    monkeypatch.setattr(gate, "decide", lambda *_, **__: pytest.fail("the gate was asked"))
    crown(model, "1")

    considered = ask(model, "1")

    assert (considered.outcome, considered.decision) == ("champion already", None)
    assert considered.describe() == "diptych version 1 is the champion already."
    assert considered.to_json()["decision"] is None


def test_a_champion_that_changed_while_the_gate_measured_is_an_error_and_stays(model, refused, monkeypatch):
    crown(model, "1")
    decide = gate.decide

    def slowly(model, version, workspace, params, **_):
        decision = decide(model, version, workspace, params)
        promote(model, model.find("3"), decide(model, model.find("3"), workspace, params))
        return decision

    monkeypatch.setattr(gate, "decide", slowly)
    with pytest.raises(DiptychError, match="compared with version 1, and meanwhile version 3 is the champion"):
        ask(model, "2")
    assert model.aliases()[CHAMPION] == "3"


def test_a_forced_promotion_names_the_champion_that_it_replaces_and_not_the_measured_one(model, refused, monkeypatch):
    crown(model, "1")
    refused.add("3")
    decide = gate.decide

    def slowly(model, version, workspace, params, **_):
        decision = decide(model, version, workspace, params)
        promote(model, model.find("2"), decide(model, model.find("2"), workspace, params))
        return decision

    monkeypatch.setattr(gate, "decide", slowly)

    assert ask(model, "3", force=True, why="in any case").before == "2"
    assert actions(model)[-1] == ("promoted", "2", "3")


def test_an_outcome_is_told_with_every_check(model, refused):
    refused.add("2")
    crown(model, "1")

    assert ask(model, "2").describe().splitlines() == [
        "NO  it is good: so so",
        "diptych version 2 does not become champion.",
    ]
    assert ask(model, "3").describe().splitlines() == [
        "ok  it is good: so so",
        "diptych version 3 is the champion in place of version 1.",
    ]


def test_an_outcome_as_plain_values_is_the_version_with_what_became_of_it(model, refused):
    found = ask(model, "1").to_json()

    assert list(found) == ["name", "version", "aliases", "tags", "metrics", "outcome", "before", "decision"]
    assert (found["outcome"], found["before"], found["decision"]["decision"]) == ("promoted", None, "accepted")


def test_a_version_that_nothing_was_decided_about_is_asked_about(model):
    crown(model, "1")

    assert needs_decision(model, model.find("2"), "d", PARAMS.gate, "auto")
    assert needs_decision(model, model.find("2"), "d", PARAMS.gate, "manual")
    assert not needs_decision(model, model.find("2"), "d", PARAMS.gate, "never")


@pytest.mark.parametrize(
    "event",
    [
        Event("promoted", "1", "2", ""),
        Event("rejected", "1", "2", ""),
        Event("rolled back", "2", "1", ""),
        Event("found", "2", None, ""),
    ],
    ids=lambda event: event.action,
)
def test_a_run_does_not_undo_what_was_decided(model, event):
    record(model, event)

    assert not needs_decision(model, model.find("2"), "d", PARAMS.gate, "auto")


def test_a_promotion_that_was_broken_off_is_no_decision(model):
    crown(model, "1")
    record(model, Event("promoted", "1", "2", ""))
    assert not needs_decision(model, model.find("2"), "d", PARAMS.gate, "auto")

    repair(model)

    assert needs_decision(model, model.find("2"), "d", PARAMS.gate, "auto")


def test_a_run_does_not_ask_twice_about_what_waits_for_a_person(model, refused):
    crown(model, "1")
    ask(model, "2", promotion="manual")

    assert not needs_decision(model, model.find("2"), "d" * 32, PARAMS.gate, "manual")
    assert needs_decision(model, model.find("2"), "other data", PARAMS.gate, "manual")
    assert needs_decision(model, model.find("2"), "d" * 32, OTHER_GATE, "manual")
    assert needs_decision(model, model.find("2"), "d" * 32, PARAMS.gate, "auto")
    crown(model, "3")
    assert needs_decision(model, model.find("2"), "d" * 32, PARAMS.gate, "manual")


def test_a_version_is_copied_and_judged_against_the_champion_of_the_other_model(model, project, measured, tmp_path):
    crown(model, "1")
    other = RegisteredModel(model.client, "production", model.uri)
    first = other.copy_of(model.find("1"))
    assert gate_and_promote(other, first, project, PARAMS).outcome == "promoted"
    make_version(other, tmp_path)
    crown(other, "2")
    measured["1"], measured["3"] = 40, 20

    copied = other.copy_of(model.find("3"))
    considered = gate_and_promote(other, copied, project, PARAMS)

    # Its 20 missed images are fewer than those of the champion that it comes from beside, and more than those here.
    assert (copied.name, copied.version, copied.tags["copied_from"]) == ("production", "3", "diptych/3")
    assert considered.decision
    assert (considered.outcome, considered.decision.champion, considered.decision.name) == ("rejected", "2", other.name)
    assert (model.aliases()[CHAMPION], other.aliases()[CHAMPION]) == ("1", "2")


def test_a_copy_is_promoted_where_it_is(model, project, measured):
    other = RegisteredModel(model.client, "production", model.uri)

    assert gate_and_promote(other, other.copy_of(model.find("2")), project, PARAMS).outcome == "promoted"
    assert (other.aliases(), model.aliases()) == ({CHAMPION: "1"}, {})


def test_two_versions_are_compared_on_the_same_queries(model, project, measured):
    measured["1"] = 10

    found = compare_versions(model, model.find("1"), model.find("2"), project, PARAMS)

    assert found.before["metrics"]["i2t"]["recall@1"] == 75.0
    assert found.after["metrics"]["rsum"] == 600.0
    assert found.rsum.rsum == pytest.approx(600.0 - found.before["metrics"]["rsum"])
    assert 0 < found.rsum.low <= found.rsum.rsum <= found.rsum.high
    assert found.parts
