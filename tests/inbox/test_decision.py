"""Reasons to train, or why there is none."""

import pytest

from diptych.config import Params
from diptych.drift.distance import Distance, Drift
from diptych.inbox.decision import Growth, changed_beyond_data, explain_no_training, reasons_to_train
from diptych.inbox.ledger import DropResult

DRIFTED = Drift(10, 20, (Distance("brightness", 0.5, 0.1, 0.2, 100.0, 30.0),))
CALM = Drift(10, 20, (Distance("brightness", 0.1, 0.05, 0.2, 100.0, 101.0),))
PARAMS = Params.model_validate({"retrain": {"new_share": 0.1}})
NOTHING_NEW = Growth(0, 100)


def reasons(taken=(), drift=None, changed=(), growth=NOTHING_NEW, params=PARAMS):
    return reasons_to_train(taken, drift, changed, growth, params)


def test_enough_new_images_are_a_reason():
    (reason,) = reasons([DropResult("a", "taken", images=12)], CALM, growth=Growth(12, 100))

    assert "12 train images are new, 12.0% of the champion's 100" in reason
    assert "The drops of this run brought 12 images" in reason


def test_too_few_new_images_without_drift_are_none():
    assert reasons(drift=CALM, growth=Growth(5, 100)) == []
    assert "5 train images are new, 5.0% of the champion's 100" in explain_no_training([], Growth(5, 100), PARAMS)
    assert "10.0% of retrain.new_share" in explain_no_training([], Growth(5, 100), PARAMS)


def test_too_few_new_images_that_drift_are_a_reason():
    (reason,) = reasons(drift=DRIFTED, growth=Growth(5, 100))

    assert "brightness drifted by 0.50, from 100 to 30" in reason


@pytest.mark.parametrize(("new", "trains"), [(0, False), (1, True)])
def test_where_the_share_is_0_any_new_image_is_a_reason(new, trains):
    assert bool(reasons(growth=Growth(new, 10_000), params=Params())) is trains


def test_an_unknown_champion_is_a_reason():
    assert "champion" in reasons(growth=None)[0]


def test_changed_code_or_parameters_are_a_reason():
    assert "train, evaluate" in reasons(changed=["train", "evaluate"])[0]


def test_nothing_new_is_none_and_says_what_was_refused():
    assert reasons([DropResult("a", "refused", "bad")]) == []
    assert "1 of 2 drops were refused" in explain_no_training(
        [DropResult("a", "refused"), DropResult("b", "known")], Growth(0, 100), PARAMS
    )
    assert (
        explain_no_training([], Growth(0, 100), PARAMS) == "Nothing is new since the champion, and nothing has changed."
    )


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
