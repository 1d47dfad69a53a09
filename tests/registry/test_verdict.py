"""What differs is told by how much."""

import json

import torch
from safetensors.torch import save_file

from diptych.files import file_sha256
from diptych.registry.verdict import compare_metrics, compare_weights

TENSORS = {"a": torch.zeros(4), "b": torch.ones(2, 2)}


def weights(folder, name, **changed):
    save_file({**TENSORS, **changed}, folder / name)
    return folder / name


def test_the_same_file_is_identical(tmp_path):
    made = weights(tmp_path, "made")

    assert compare_weights(file_sha256(made), made, None).identical


def test_tensors_that_differ_are_told_with_their_largest_and_mean_distance(tmp_path):
    registered = weights(tmp_path, "registered")
    made = weights(tmp_path, "made", a=torch.tensor([0.0, 0.0, 0.0, -0.5]))

    finding = compare_weights(file_sha256(registered), made, registered)

    assert not finding.identical
    assert finding.differences == {"a": {"largest": 0.5, "mean": 0.125}}
    assert finding.detail == "1 tensors differ: a at most 0.5, 0.12 on average"


def test_the_worst_are_shown_first_and_the_others_counted(tmp_path):
    registered = tmp_path / "registered"
    save_file({str(i): torch.zeros(1) for i in range(5)}, registered)
    save_file({str(i): torch.full((1,), float(i)) for i in range(5)}, tmp_path / "made")

    detail = compare_weights("0" * 64, tmp_path / "made", registered).detail

    assert detail.startswith("4 tensors differ: 4 at most 4, 4 on average; 3 at most 3")
    assert detail.endswith(" and 1 more")


def test_tensors_of_other_shapes_and_missing_ones_cannot_be_compared(tmp_path):
    registered = weights(tmp_path, "registered", c=torch.ones(1))
    made = weights(tmp_path, "made", a=torch.zeros(5))

    finding = compare_weights("0" * 64, made, registered)

    assert finding.differences == {name: {"largest": None, "mean": None} for name in ("a", "c")}
    assert "a cannot be compared; c cannot be compared" in finding.detail


def test_a_distance_that_is_no_number_is_none(tmp_path):
    made = weights(tmp_path, "made", a=torch.full((4,), torch.nan))

    finding = compare_weights("0" * 64, made, weights(tmp_path, "registered"))

    json.dumps(dict(finding.differences), allow_nan=False)
    assert "a cannot be compared" in finding.detail


def test_equal_tensors_in_another_file_are_said_to_be_so(tmp_path):
    save_file(TENSORS, tmp_path / "made", metadata={"made": "elsewhere"})

    finding = compare_weights("0" * 64, tmp_path / "made", weights(tmp_path, "registered"))

    assert (finding.identical, finding.detail) == (False, "all tensors are equal, the file around them is not")


def test_without_the_package_or_without_weights_there_is_nothing_to_measure(tmp_path):
    made = weights(tmp_path, "made")

    assert "is not at hand" in compare_weights("0" * 64, made, None).detail
    assert compare_weights("0" * 64, tmp_path / "none", None).found == "nothing"


def metrics(folder, rsum=120.0, **more):
    path = folder / "metrics.json"
    path.write_text(json.dumps({"towers": {"i2t": {"recall@1": 10.0}, "rsum": rsum, **more}}))
    return path


RECORDED = {"towers/i2t/recall_at_1": 10.0, "towers/rsum": 120.0, "baselines/prior/rsum": 1.0, "loss": 2.0}


def test_each_figure_of_the_test_is_compared_with_that_of_the_run(tmp_path):
    finding = compare_metrics(RECORDED, metrics(tmp_path))

    assert finding == ("metrics", True, "2 figures", "2 figures", "", {})


def test_figures_that_differ_are_told_by_how_much(tmp_path):
    finding = compare_metrics(RECORDED, metrics(tmp_path, rsum=118.5))

    assert finding.differences == {"towers/rsum": {"recorded": 120.0, "found": 118.5}}
    assert finding.detail == "1 differ: towers/rsum -1.5"


def test_figures_that_are_new_or_gone_differ(tmp_path):
    recorded = {**RECORDED, "towers/ndcg": 1.0}

    assert compare_metrics(recorded, metrics(tmp_path, mrr=0.5)).detail == (
        "2 differ: towers/mrr is new; towers/ndcg is gone"
    )


def test_without_figures_there_is_nothing(tmp_path):
    assert compare_metrics(RECORDED, tmp_path / "metrics.json").identical is False
