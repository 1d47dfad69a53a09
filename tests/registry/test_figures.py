"""Parameters and metrics, as MLflow takes them."""

import json
import math
from typing import Any

from diptych.registry.figures import (
    Figures,
    flat_metrics,
    flat_params,
    metric_name,
    metrics_now,
    send_metrics,
    send_params,
)


class _Client:
    """An MLflow that stores the calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[Any], list[Any]]] = []

    def log_batch(self, run_id, metrics=(), params=()):
        self.calls.append((list(metrics), list(params)))


def test_nested_parameters_become_dotted_names():
    values = {
        "seed": 0,
        "train": {"epochs": 3, "objectives": {"itm": 1.0}},
        "mean": [0.5],
        "config": {},
        "name": "x",
    }

    assert flat_params(values) == {
        "seed": "0",
        "train.epochs": "3",
        "train.objectives.itm": "1.0",
        "mean": "[0.5]",
        "config": "{}",
        "name": "x",
    }


def test_metrics_have_names_that_mlflow_takes():
    assert metric_name("val_i2t_recall@1") == "val_i2t_recall_at_1"


def test_metrics_are_flattened_and_what_is_no_number_left_out():
    metrics = {"towers": {"i2t": {"recall@1": 1, "name": "x"}, "rsum": 2.5}, "ok": True, "list": [1]}

    assert flat_metrics(metrics) == {"towers/i2t/recall_at_1": 1.0, "towers/rsum": 2.5}


def test_metrics_of_one_call_share_step_and_time():
    first, second = metrics_now({"loss": 2, "i2t_recall@1": 50.0}, 3)

    assert [(metric.key, metric.value, metric.step) for metric in (first, second)] == [
        ("loss", 2.0, 3),
        ("i2t_recall_at_1", 50.0, 3),
    ]
    assert first.timestamp == second.timestamp > 1e12


def test_many_metrics_are_sent_in_calls_of_500_and_forgotten():
    client: Any = _Client()
    metrics = metrics_now({f"m{number}": number for number in range(1001)}, 0)

    send_metrics(client, "run", metrics)

    assert [len(sent) for sent, _ in client.calls] == [500, 500, 1]
    assert metrics == []


def test_many_parameters_are_sent_in_calls_of_100_and_long_ones_cut():
    client: Any = _Client()

    send_params(client, "run", {f"p{number}": "x" * 7000 for number in range(101)})

    assert [len(sent) for _, sent in client.calls] == [100, 1]
    assert len(client.calls[0][1][0].value) == 6000


def test_figures_survive_json_which_has_no_nan():
    figures = Figures({"seed": "0"}, metrics_now({"loss": math.nan}, 2), {"git_sha": "a"}, "KILLED")

    content = json.loads(json.dumps(figures.to_json(), allow_nan=False))
    again = Figures.from_json(content)

    assert (again.params, again.tags, again.status) == (figures.params, figures.tags, "KILLED")
    (metric,) = again.metrics
    assert (metric.key, metric.step, metric.timestamp) == ("loss", 2, figures.metrics[0].timestamp)
    assert math.isnan(metric.value)
