"""The gate lets through what is as good as the champion, and says what it refuses and by which figures."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.pyfunc.model import PythonModel
from tiny import write_prepared
from versions import HOLDS, crown, make_version, package_of, register_package, write_accepted

from diptych.config import Params
from diptych.data.captions import Dataset, write_dataset
from diptych.data.shards import ShardWriter
from diptych.errors import DiptychError
from diptych.project.dataset import folder_md5
from diptych.project.workspace import Workspace
from diptych.registry import gate
from diptych.registry.answer_time import answer_time
from diptych.registry.gate import decide, store_decision
from diptych.registry.measuring import Measured, gallery
from diptych.registry.registered_model import RegisteredModel, model_folder
from diptych.retrieval.comparison import compare
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.ranking import Outcomes, Ranks
from diptych.serving.judged_queries import JudgedQuery

pytestmark = pytest.mark.slow

IMAGES, GUARDED = 40, 30
MODEL = """
import atexit, os
import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel

class Small(PythonModel):
    def load_context(self, context):
        {loading}

    def predict(self, context, model_input, params=None):
        return pd.DataFrame({{"score": [0.5]}})

mlflow.models.set_model(Small())
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Workspace:
    """With a prepared test split of 40 images; tests only look at it."""
    workspace = Workspace(tmp_path_factory.mktemp("gate"))
    write_prepared(workspace.prepared, train=4, val=4, test=IMAGES)
    write_accepted(workspace)
    (workspace.root / "data.dvc").write_text("outs:\n- md5: 0123456789abcdef0123456789abcdef.dir\n  path: data\n")
    return workspace


@pytest.fixture
def model(four):
    """With four versions."""
    return four


@pytest.fixture(scope="module")
def guard_set(project, photo) -> dict[str, object]:
    """A set of 30 images with one caption each, as params.yaml names it."""
    folder, dataset = project.root / "guards" / "old", Dataset()
    with ShardWriter(folder) as shards:
        for number in range(GUARDED):
            shards.add(f"{number}.png", photo(number))
            dataset.images.append({"id": number, "file_name": f"{number}.png"})
            dataset.annotations.append({"id": number, "image_id": number, "caption": f"thing {number}"})
    write_dataset(folder, dataset)
    return {"path": "guards/old", "md5": folder_md5(folder)}


@pytest.fixture
def measured(project, monkeypatch) -> dict[str, Ranks]:
    """What each version finds, by its number; without an entry it is everything, at the first place.

    What it finds on the guard sets is below "NUMBER on guard sets".
    """
    found: dict[str, Ranks] = {}

    def measure(folder, workspace, params, name, guard_sets):
        assert (folder / "model.safetensors").is_file()
        number = name.removeprefix("version ")
        ranks = found.get(number, finds(project))
        if isinstance(ranks, Exception):
            raise ranks
        on_guard_sets = found.get(f"{number} on guard sets", finds_guarded())
        guard_ranks = {guard_set.name: on_guard_sets for guard_set in guard_sets}
        return Measured(ranks, {"reranked": metrics_from_ranks(*ranks)}, guard_ranks)

    monkeypatch.setattr(gate, "measure", measure)
    monkeypatch.setattr(gate, "answer_time", lambda package: {"pair_ms": 20.0, "load_s": 1.5})
    return found


@pytest.fixture
def judged(measured, monkeypatch) -> dict[str, int]:
    """How many of 50 judged queries each version misses, by its number; without an entry none."""
    misses: dict[str, int] = {}

    def judged_ranks(queries, settings, folder, workspace, params):
        number = (folder / "model.safetensors").read_text().removeprefix("weights ")
        return np.where(np.arange(len(queries)) < misses.get(number, 0), 11.0, 10.0)

    queries = [JudgedQuery("a dog", ["0" * 64], [])] * 50
    monkeypatch.setattr(gate, "open_judged_queries", lambda workspace, params, champion: queries)
    monkeypatch.setattr(gate, "judged_ranks", judged_ranks)
    return misses


JUDGED = {"path": "guards/judged", "md5": f"{'0' * 32}.dir"}


def finds(project: Workspace, misses: int = 0, rank: int = 11, part: str | None = None) -> Ranks:
    """All queries find the right item first; but for `misses` images, or a part's captions, whose rank is another."""
    on = gallery(project, Params())
    images, captions = np.ones(IMAGES, np.int64), np.ones(len(on.image_of_caption), np.int64)
    images[:misses] = rank
    captions[on.image_of_caption < misses] = rank
    if part is not None:
        (there,) = [one.queries for one in on.parts if (one.attribute, one.label) == ("words in the caption", part)]
        captions[there] = rank
    one_way = (Outcomes.one_relevant(ranks, np.zeros(len(ranks), bool)) for ranks in (images, captions))
    return Ranks(*one_way)


def finds_guarded(misses: int = 0, rank: int = 11) -> Ranks:
    """On a guard set all queries find the right item first, but for those of `misses` images, whose rank is another."""
    ranks = np.where(np.arange(GUARDED) < misses, rank, 1)
    one_way = Outcomes.one_relevant(ranks, np.zeros(GUARDED, bool))
    return Ranks(one_way, one_way)


def settings(**changes: object) -> Params:
    return Params.model_validate({"threads": 1, "device": "cpu", "gate": changes})


def failed(decision) -> list[str]:
    return [check.name for check in decision.checks if not check.passed]


def ask(model, number: str, project: Workspace, **changes: object):
    return decide(model, model.find(number), project, settings(**changes))


def test_the_first_version_of_a_registry_passes_if_it_is_good(model, project, measured):
    decision = ask(model, "1", project, floors={"rsum": 600.0, "t2i/recall@1": 100.0})

    assert (decision.accepted, decision.champion, decision.comparison) == (True, None, None)
    assert decision.summary == "RSUM 600.0, and there is no champion to compare with"
    assert decision.figures() == {"rsum": 600.0}
    assert [check.name for check in decision.checks] == [
        "version 1 is what was registered",
        "its training data met all expectations",
        "it loads in a clean process and answers within 2000 ms",
        "it is better than chance",
        "rsum is at least 600",
        "t2i/recall@1 is at least 100",
    ]


def test_the_first_version_of_a_registry_is_refused_below_a_floor(model, project, measured):
    measured["1"] = finds(project, misses=4)

    decision = ask(model, "1", project, floors={"rsum": 530.0, "i2t/recall@1": 91.0, "t2i/recall@5": 80.0})

    assert failed(decision) == ["i2t/recall@1 is at least 91"]
    assert decision.summary == "the gate refuses it: i2t/recall@1 is at least 91: 90.0"


def test_a_floor_is_passed_by_its_very_figure(model, project, measured):
    measured["1"] = finds(project, misses=4)

    assert ask(model, "1", project, floors={"i2t/recall@1": 90.0}).accepted
    assert not ask(model, "1", project, floors={"i2t/recall@1": math.nextafter(90.0, 91.0)}).accepted


def test_a_model_that_guesses_is_refused(model, project, measured):
    random = np.random.default_rng(0)
    captions = len(gallery(project, Params()).image_of_caption)
    guesses = (random.integers(1, IMAGES + 1, size=count) for count in (IMAGES, captions))
    measured["1"] = Ranks(*(Outcomes.one_relevant(ranks, np.zeros(len(ranks), bool)) for ranks in guesses))

    decision = ask(model, "1", project)

    assert failed(decision) == ["it is better than chance"]
    assert ask(model, "1", project, better_than_chance=False).accepted


def test_a_challenger_as_good_as_the_champion_is_accepted(model, project, measured):
    crown(model, "1")

    decision = ask(model, "2", project, rsum_margin=0.0, slice_margin=0.0)

    assert (decision.accepted, decision.champion) == (True, "1")
    assert decision.summary == "RSUM +0.0 (+0.0 to +0.0) against version 1"
    assert decision.figures() == {"rsum": 600.0, "gain": 0.0, "gain_low": 0.0, "gain_high": 0.0}


def test_a_challenger_that_is_worse_than_the_champion_is_refused(model, project, measured):
    crown(model, "1")
    measured["2"] = finds(project, misses=8)

    decision = ask(model, "2", project)

    assert "its RSUM is not more than 10 below the champion's" in failed(decision)
    assert decision.comparison.rsum.rsum == pytest.approx(-120.0, abs=10)


def test_a_challenger_that_is_better_than_the_champion_is_accepted(model, project, measured):
    crown(model, "1")
    measured["1"] = finds(project, misses=8)

    decision = ask(model, "2", project)

    assert decision.accepted
    assert decision.figures()["gain_low"] > 0


def test_the_margin_of_the_rsum_is_where_params_yaml_says(model, project, measured):
    crown(model, "1")
    measured["2"] = finds(project, misses=2, rank=2)
    on = gallery(project, Params())
    low = compare(finds(project), measured["2"], on.image_of_caption, []).rsum.low
    assert low < 0

    assert ask(model, "2", project, rsum_margin=-low).accepted
    refused = ask(model, "2", project, rsum_margin=math.nextafter(-low, 0))
    assert [name.startswith("its RSUM is not") for name in failed(refused)] == [True]


def test_the_margin_of_a_part_is_where_params_yaml_says(model, project, measured):
    crown(model, "1")
    measured["2"] = finds(project, part="8")
    on = gallery(project, Params())
    gains = compare(finds(project), measured["2"], on.image_of_caption, on.parts).parts
    high = min(part.high for part in gains)
    assert high == -100.0
    # Of the parts by the image, some captions are lost too, fewer.
    less = min(part.high for part in gains if part.attribute != "words in the caption")
    assert -100 < less < 0

    lenient = {"rsum_margin": 1000.0}
    assert ask(model, "2", project, **lenient, slice_margin=100.0).accepted
    refused = ask(model, "2", project, **lenient, slice_margin=99.0)
    assert failed(refused) == ["in no part of the queries recall@10 loses more than 99, by its 95 % interval"]
    assert "words in the caption 8, t2i: recall@10 100.0 → 0.0" in refused.summary
    by_image = {**lenient, "guarded": ["width / height", "brightness in %", "an image that shows"]}
    assert ask(model, "2", project, **by_image, slice_margin=-less).accepted
    assert not ask(model, "2", project, **by_image, slice_margin=math.nextafter(-less, 0)).accepted


def test_only_guarded_parts_must_not_lose(model, project, measured):
    crown(model, "1")
    measured["2"] = finds(project, part="8")

    guarded = ask(model, "2", project, rsum_margin=1000.0, slice_margin=50.0, guarded=["words in the caption"])
    unguarded = ask(model, "2", project, rsum_margin=1000.0, slice_margin=50.0, guarded=[])

    assert (guarded.accepted, unguarded.accepted) == (False, True)
    assert {part.attribute for part in guarded.comparison.parts} == {"words in the caption"}


def test_a_guarded_part_that_there_is_not_is_an_error_that_names_the_key(model, project, measured, monkeypatch):
    def fail(*arguments):
        pytest.fail("a model was measured")

    monkeypatch.setattr(gate, "measure", fail)
    with pytest.raises(DiptychError, match=r"params\.yaml: gate\.guarded: .*no slices by 'colour'; it has an image"):
        ask(model, "1", project, guarded=["width / height", "colour"])


def test_a_challenger_that_has_forgotten_a_guard_set_is_refused(model, project, measured, guard_set):
    crown(model, "1")
    measured["2 on guard sets"] = finds_guarded(misses=6)

    decision = ask(model, "2", project, guard_sets={"old": guard_set})

    # On the test split it is as good as the champion.
    assert decision.comparison.rsum.rsum == 0
    assert failed(decision) == ["on guard set old its RSUM is not more than 10 below the champion's"]
    gain = decision.guard_sets["old"].comparison.rsum
    assert decision.summary == f"the gate refuses it: {failed(decision)[0]}: {gain.describe()}"
    assert (gain.rsum, decision.guard_sets["old"].md5) == (pytest.approx(-120.0), guard_set["md5"])


def test_a_challenger_that_has_forgotten_nothing_is_accepted(model, project, measured, guard_set):
    crown(model, "1")

    decision = ask(model, "2", project, guard_sets={"old": {**guard_set, "margin": 0.0}})

    assert decision.accepted
    assert decision.summary == "RSUM +0.0 (+0.0 to +0.0) against version 1, +0.0 (+0.0 to +0.0) on old"


def test_the_margin_of_a_guard_set_is_where_params_yaml_says(model, project, measured, guard_set):
    crown(model, "1")
    measured["2 on guard sets"] = finds_guarded(misses=1, rank=2)
    low = compare(finds_guarded(), measured["2 on guard sets"], np.arange(GUARDED), []).rsum.low
    assert low < 0

    margins = {"at": -low, "below": math.nextafter(-low, 0)}
    sets = {name: {**guard_set, "margin": margin} for name, margin in margins.items()}
    decision = ask(model, "2", project, guard_sets=sets)

    assert [name.partition(" its")[0] for name in failed(decision)] == ["on guard set below"]


def test_a_first_version_has_nothing_to_forget(model, project, measured, guard_set):
    decision = ask(model, "1", project, guard_sets={"old": guard_set})

    assert (decision.accepted, decision.guard_sets) == (True, {})
    assert not [check.name for check in decision.checks if "guard set" in check.name]


@pytest.mark.parametrize("champion", ["1", None])
def test_a_guard_set_that_is_not_the_pinned_one_is_an_error_before_anything_is_measured(
    model, project, measured, guard_set, monkeypatch, champion
):
    if champion:
        crown(model, champion)
    monkeypatch.setattr(gate, "measure", lambda *_: pytest.fail("a model was measured"))

    with pytest.raises(DiptychError, match=r"params\.yaml: gate\.guard_sets\.old: .* is not the pinned set"):
        ask(model, "2", project, guard_sets={"old": {**guard_set, "md5": f"{'0' * 32}.dir"}})


def test_a_challenger_that_loses_on_the_judged_queries_is_refused(model, project, judged):
    crown(model, "1")
    judged["2"] = 20

    decision = ask(model, "2", project, judged_queries=JUDGED)

    # On the test split it is as good as the champion.
    assert decision.comparison.rsum.rsum == 0
    assert failed(decision) == ["on 50 judged queries no sure loss of recall@10 above 10"]
    on_judged = decision.judged_queries
    assert (on_judged.md5, on_judged.queries, on_judged.before, on_judged.after) == (JUDGED["md5"], 50, 100.0, 60.0)
    assert decision.summary == f"the gate refuses it: {failed(decision)[0]}: {on_judged.describe()}"
    assert f"| {failed(decision)[0]} | NO | -40.0 (" in decision.render()


def test_a_challenger_as_good_on_the_judged_queries_is_accepted(model, project, judged):
    crown(model, "1")
    judged |= {"1": 20, "2": 20}

    decision = ask(model, "2", project, judged_queries={**JUDGED, "margin": 0.0})

    assert decision.accepted
    assert decision.summary.endswith("version 1, recall@10 +0.0 (+0.0 to +0.0) on 50 judged queries")


def test_the_margin_of_the_judged_queries_is_where_params_yaml_says(model, project, judged):
    crown(model, "1")
    judged["2"] = 20
    high = ask(model, "2", project, judged_queries=JUDGED).judged_queries.high
    assert -40 < high < -10

    assert ask(model, "2", project, judged_queries={**JUDGED, "margin": -high}).accepted
    assert not ask(model, "2", project, judged_queries={**JUDGED, "margin": math.nextafter(-high, 0)}).accepted


def test_a_first_version_is_not_measured_on_judged_queries(model, project, judged):
    judged["1"] = 50

    decision = ask(model, "1", project, judged_queries=JUDGED)

    assert (decision.accepted, decision.judged_queries) == (True, None)
    assert not [check.name for check in decision.checks if "judged" in check.name]


@pytest.mark.parametrize("champion", ["1", None])
def test_judged_queries_that_are_missing_are_an_error_before_anything_is_measured(
    model, project, measured, monkeypatch, champion
):
    if champion:
        crown(model, champion)
    monkeypatch.setattr(gate, "measure", lambda *_: pytest.fail("a model was measured"))

    with pytest.raises(
        DiptychError, match=r"params\.yaml: gate\.judged_queries: the folder .*guards/judged is missing"
    ):
        ask(model, "2", project, judged_queries=JUDGED)


@pytest.mark.parametrize("changes", [{"latency_ms": 10.0}, {"floors": {"rsum": 601.0}}])
def test_a_version_that_another_check_refuses_is_not_measured_on_judged_queries(
    model, project, judged, monkeypatch, changes
):
    crown(model, "1")
    monkeypatch.setattr(gate, "judged_ranks", lambda *_: pytest.fail("a collection was searched"))

    decision = ask(model, "2", project, judged_queries=JUDGED, **changes)

    assert len(failed(decision)) == 1
    assert (decision.accepted, decision.judged_queries) == (False, None)
    assert not [check.name for check in decision.checks if "judged" in check.name]


def test_nothing_is_measured_on_judged_queries_where_the_champion_cannot_be_measured(
    model, project, measured, judged, monkeypatch
):
    crown(model, "1")
    measured["1"] = DiptychError("it is damaged")
    monkeypatch.setattr(gate, "judged_ranks", lambda *_: pytest.fail("a collection was searched"))

    assert failed(ask(model, "2", project, judged_queries=JUDGED)) == ["version 1 can be measured"]


def test_a_collection_that_cannot_be_indexed_is_no_rejection(model, project, judged, monkeypatch):
    def fail(*arguments):
        raise DiptychError("the bucket does not answer")

    crown(model, "1")
    monkeypatch.setattr(gate, "judged_ranks", fail)
    with pytest.raises(DiptychError, match="the bucket does not answer"):
        ask(model, "2", project, judged_queries=JUDGED)


def test_the_champion_is_measured_again_on_the_data_of_today(model, project, measured):
    crown(model, "1")
    measured["1"] = finds(project, misses=20)

    decision = ask(model, "2", project)

    # What its run says, 130.0, is of other data.
    assert decision.comparison.before["metrics"]["rsum"] == metrics_from_ranks(*measured["1"])["rsum"]
    assert decision.data_md5 == "0123456789abcdef0123456789abcdef.dir"
    assert len(decision.evaluator_sha256) == 64


def test_the_champion_itself_is_asked_about_as_a_first_version(model, project, measured):
    crown(model, "1")

    assert ask(model, "1", project).champion is None


def test_a_version_that_answers_too_slowly_is_refused(model, project, measured):
    assert ask(model, "1", project, latency_ms=20.0).accepted
    decision = ask(model, "1", project, latency_ms=19.9)
    assert decision.summary == (
        "the gate refuses it: it loads in a clean process and answers within 19.9 ms: 20 ms a pair, loaded in 1.5 s; "
        "gate.latency_ms is the limit, and other work on this machine counts"
    )


def test_a_version_whose_data_broke_a_promise_is_refused(model, project, measured, tmp_path):
    broken = {**HOLDS["expectations"][0], "success": False}
    version = make_version(model, tmp_path, validation={"expectations": [*HOLDS["expectations"], broken]})

    decision = decide(model, version, project, settings())

    assert failed(decision) == ["its training data met all expectations"]
    assert decision.summary.endswith("images: unique (image_id)")


@pytest.mark.parametrize("report", [None, {}, {"expectations": []}, {"expectations": [{}]}, {"expectations": 3}])
def test_a_version_without_a_validation_report_is_refused(model, project, measured, tmp_path, report):
    version = make_version(model, tmp_path, validation=report)

    decision = decide(model, version, project, settings())

    assert failed(decision) == ["its training data met all expectations"]
    assert "its validation report is missing or damaged" in decision.summary


@pytest.mark.parametrize("damage", ["gone", "other weights", "another configuration"])
def test_a_version_that_is_not_what_was_registered_is_refused_unmeasured(model, project, measured, tmp_path, damage):
    version = make_version(model, tmp_path)
    content = model_folder(package_of(model, version))
    if damage == "gone":
        shutil.rmtree(package_of(model, version))
    elif damage == "other weights":
        (content / "model.safetensors").write_bytes(b"other")
    else:
        (content / "config.json").write_text("{}")

    decision = decide(model, version, project, settings())

    assert failed(decision) == ["version 5 is what was registered"]
    assert (decision.metrics, decision.figures(), decision.comparison) == ({}, {}, None)


def test_a_version_that_cannot_be_measured_is_refused(model, project, measured):
    measured["1"] = DiptychError("it holds NaN")

    decision = ask(model, "1", project)

    assert failed(decision) == ["version 1 can be measured"]
    assert "it holds NaN" in decision.summary


def test_without_the_package_of_the_champion_nothing_takes_its_place(model, project, measured, tmp_path):
    champion = make_version(model, tmp_path)
    crown(model, champion.version)
    shutil.rmtree(package_of(model, champion))

    decision = ask(model, "1", project)

    assert (failed(decision), decision.champion) == (["version 5 is what was registered"], "5")
    assert decision.figures() == {"rsum": 600.0}


def test_without_a_test_split_there_is_nothing_to_decide_by(model, measured, tmp_path):
    with pytest.raises(DiptychError, match=r"There is nothing to measure a model on: .*Run `dvc repro preprocess`"):
        decide(model, model.find("1"), Workspace(tmp_path), settings())


def test_asking_changes_nothing_in_the_registry(model, project, measured):
    crown(model, "1")
    measured["2"] = finds(project, misses=8)
    before = model.client.get_registered_model(model.name).tags, model.find("2"), model.aliases()

    ask(model, "2", project)

    assert (model.client.get_registered_model(model.name).tags, model.find("2"), model.aliases()) == before


def test_what_was_decided_is_kept_with_the_run_and_the_version(model, project, measured, guard_set):
    crown(model, "1")
    measured["2"] = finds(project, misses=8)
    version, params = model.find("2"), settings(guard_sets={"old": guard_set})
    decision = decide(model, version, project, params)

    store_decision(model, version, decision)

    tags = model.find("2").tags
    assert {name: tags[name] for name in tags if name.startswith("gate")} == {
        "gate": "rejected",
        "gate_champion": "1",
        "gate_data_md5": "0123456789abcdef0123456789abcdef.dir",
        "gate_sha256": params.gate.sha256,
        "gate_summary": decision.summary,
    }
    files = [f"gate/diptych-version-2-against-1.{kind}" for kind in ("json", "md")]
    assert set(files) <= {file.path for file in model.client.list_artifacts(version.run_id, "gate")}
    text = Path(model.client.download_artifacts(version.run_id, files[0])).read_text()
    kept = json.loads(text)
    assert kept == json.loads(json.dumps(decision.to_json()))
    assert (kept["decision"], kept["metrics"]["reranked"]["rsum"]) == ("rejected", pytest.approx(480.7, abs=0.1))
    assert kept["guard_sets"]["old"]["md5"] == guard_set["md5"]
    page = Path(model.client.download_artifacts(version.run_id, files[1])).read_text()
    assert page.startswith("# diptych version 2: rejected")
    assert "| its RSUM is not more than 10 below the champion's | NO |" in page
    assert "| on guard set old its RSUM is not more than 10 below the champion's | yes | +0.0 (+0.0 to +0.0) |" in page


def test_evidence_of_a_copy_stands_beside_that_of_its_origin(model, project, measured):
    version = model.find("3")
    other = RegisteredModel(model.client, "production", model.uri)
    for place, one in ((model, version), (other, other.copy_of(version))):
        store_decision(place, one, decide(place, one, project, settings()))

    files = {file.path for file in model.client.list_artifacts(version.run_id, "gate")}
    assert {"gate/diptych-version-3-against-none.json", "gate/production-version-1-against-none.json"} <= files


def make_package(folder: Path, loading: str = "pass") -> Path:
    """One that answers in no time; `loading` is what it does when it is loaded."""
    folder.mkdir(parents=True)
    (folder / "code.py").write_text(MODEL.format(loading=loading))
    mlflow.pyfunc.save_model(folder / "package", python_model=str(folder / "code.py"), pip_requirements=[])
    return folder / "package"


@pytest.fixture
def forked_packages(forks, monkeypatch):
    """Packages are loaded in processes that need not import MLflow."""
    monkeypatch.setattr(sys, "executable", forks.package_python)


@pytest.mark.usefixtures("forked_packages")
def test_a_package_loads_and_answers_in_a_process_of_its_own(tmp_path):
    package = make_package(tmp_path / "made", 'atexit.register(print, "goodbye"); print("hello")')

    found = answer_time(package)

    assert found["pair_ms"] >= 0
    assert found["load_s"] > 0


@pytest.mark.usefixtures("forked_packages")
def test_a_package_sees_no_secrets_of_the_environment(tmp_path, monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "GITHUB_TOKEN", "MLFLOW_TRACKING_URI"):
        monkeypatch.setenv(name, "http://secret")
    package = make_package(tmp_path / "made", "raise RuntimeError(repr(sorted(os.environ.items())))")

    with pytest.raises(DiptychError, match="'PATH'") as raised:
        answer_time(package)

    assert "secret" not in str(raised.value)
    assert "('MLFLOW_ALLOW_PICKLE_DESERIALIZATION', 'false')" in str(raised.value)


@pytest.mark.usefixtures("forked_packages")
def test_a_package_that_ends_without_an_answer_is_refused(tmp_path):
    package = make_package(tmp_path / "made", "os._exit(0)")

    with pytest.raises(DiptychError, match="it ended without an answer"):
        answer_time(package)


def test_a_package_that_takes_forever_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.registry.answer_time.TIMEOUT", 0.05)

    with pytest.raises(DiptychError, match=r"did not load and answer within 0\.05 s"):
        answer_time(tmp_path)


@pytest.mark.usefixtures("forked_packages")
def test_a_package_that_unpickles_is_refused(model, project, measured, monkeypatch, tmp_path):
    class Pickled(PythonModel):
        def predict(self, context, model_input, params=None):
            return model_input

    content = tmp_path / "model"
    content.mkdir()
    (content / "model.safetensors").write_bytes(b"weights")
    package = tmp_path / "package"
    artifacts = {"model": str(content)}
    mlflow.pyfunc.save_model(package, python_model=Pickled(), artifacts=artifacts, pip_requirements=[])
    assert (package / "python_model.pkl").is_file()
    version = register_package(model, package)
    monkeypatch.setattr(gate, "answer_time", answer_time)

    decision = decide(model, version, project, settings())

    assert failed(decision) == ["it loads in a clean process and answers within 2000 ms"]
    assert "pickle" in decision.summary.lower()
