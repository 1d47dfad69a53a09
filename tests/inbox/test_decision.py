"""Reasons to train, or why there is none."""

import pytest

from diptych.config import Params
from diptych.drift.distance import Distance, Drift
from diptych.inbox.decision import changed_beyond_data, reasons_to_train, why_not
from diptych.inbox.ledger import Taken

DRIFTED = Drift(10, 20, (Distance("brightness", 0.5, 0.1, 0.2, 100.0, 30.0),))
CALM = Drift(10, 20, (Distance("brightness", 0.1, 0.05, 0.2, 100.0, 101.0),))
PARAMS = Params.model_validate({"retrain": {"new_share": 0.1}})


def reasons(taken=(), drift=None, changed=(), growth=0.0, params=PARAMS):
    return reasons_to_train(taken, drift, changed, growth, params)


def test_enough_new_images_are_a_reason():
    (reason,) = reasons([Taken("a", "taken", images=12)], CALM, growth=0.12)

    assert "12.0% more train images" in reason
    assert "The drops of this run brought 12 images" in reason


def test_too_few_new_images_without_drift_are_none():
    assert reasons(drift=CALM, growth=0.05) == []
    assert "5.0% more train images" in why_not([], 0.05, PARAMS)
    assert "10.0% of retrain.new_share" in why_not([], 0.05, PARAMS)


def test_too_few_new_images_that_drift_are_a_reason():
    (reason,) = reasons(drift=DRIFTED, growth=0.05)

    assert "brightness drifted by 0.50, from 100 to 30" in reason


@pytest.mark.parametrize(("growth", "trains"), [(0.0, False), (0.0001, True)])
def test_where_the_share_is_0_any_new_image_is_a_reason(growth, trains):
    assert bool(reasons(growth=growth, params=Params())) is trains


def test_an_unknown_champion_is_a_reason():
    assert "champion" in reasons(growth=None)[0]


def test_changed_code_or_parameters_are_a_reason():
    assert "train, evaluate" in reasons(changed=["train", "evaluate"])[0]


def test_nothing_new_is_none_and_says_what_was_refused():
    assert reasons([Taken("a", "refused", "bad")]) == []
    assert "1 of 2 drops were refused" in why_not([Taken("a", "refused"), Taken("b", "known")], 0.0, PARAMS)
    assert why_not([], 0.0, PARAMS) == "Nothing is new since the champion, and nothing has changed."


def test_of_changed_stages_those_count_that_changed_by_themselves():
    status = {
        "data.dvc": [{"changed outs": {"data": "modified"}}],
        "validate": [{"changed deps": {"data": "modified"}}, {"changed outs": {"reports/validation.json": "deleted"}}],
        "preprocess": [{"changed deps": {"artifacts/manifest.parquet": "modified"}}],
        "train": [{"changed deps": {"artifacts/prepared": "modified", "params.yaml": {"seed": "modified"}}}],
        "controls": ["changed command"],
        "evaluate": [{"changed deps": {"src/diptych/config.py": "modified"}}],
    }

    assert changed_beyond_data(status) == ["train", "controls", "evaluate"]
