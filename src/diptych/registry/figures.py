"""Figures of a training, parameters and metrics, under the names and in the sizes that MLflow takes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

if TYPE_CHECKING:
    from mlflow import MlflowClient

_METRICS_A_CALL, _PARAMS_A_CALL = 500, 100
_LONGEST_PARAM = 6000


class Measurement(NamedTuple):
    """Value of a metric at a step of the training; `timestamp` in milliseconds since 1970."""

    key: str
    value: float
    timestamp: int
    step: int


@dataclass
class Figures:
    """Unsent parameters and metrics of a training, and at its end tags and a status."""

    params: dict[str, str] = field(default_factory=dict)
    metrics: list[Measurement] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    status: str = ""
    """FINISHED, FAILED or KILLED; empty while the training goes on."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Return the figures that `to_json` has written.

        Raises:
            ValueError, TypeError, KeyError: `content` is something else.
        """
        metrics = [Measurement(key, float(value), when, step) for key, value, when, step in content["metrics"]]
        return cls(content["params"], metrics, content["tags"], content["status"])

    def to_json(self) -> dict[str, Any]:
        """Return plain values; numbers become texts, since JSON has no NaN."""
        return {
            **vars(self),
            "metrics": [[item.key, repr(item.value), item.timestamp, item.step] for item in self.metrics],
        }

    def send(self, client: MlflowClient, run_id: str) -> None:
        """Send everything to the run; parameters and metrics that have arrived are removed here."""
        send_params(client, run_id, self.params)
        self.params = {}
        send_metrics(client, run_id, self.metrics)
        for name, value in self.tags.items():
            client.set_tag(run_id, name, value)
        if self.status:
            client.set_terminated(run_id, self.status)


def flat_params(values: Mapping[str, Any]) -> dict[str, str]:
    """Return nested parameters as texts by `section.key`."""
    return {".".join(keys): value if isinstance(value, str) else json.dumps(value) for keys, value in _leaves(values)}


def flat_metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of nested metrics by names such as `reranked/i2t/recall_at_1`."""
    return {
        metric_name("/".join(keys)): float(value)
        for keys, value in _leaves(values)
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def metric_name(name: str) -> str:
    """Return the name of a metric in MLflow, which refuses the @ of recall@1."""
    return name.replace("@", "_at_")


def metrics_now(values: Mapping[str, float], step: int) -> list[Measurement]:
    """Return the values as measurements of this moment."""
    now = int(time.time() * 1000)
    return [Measurement(metric_name(name), float(value), now, step) for name, value in values.items()]


def send_params(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    """Send parameters, cut to the length and in calls of the size that MLflow takes."""
    from mlflow.entities import Param

    params = [Param(key, text[:_LONGEST_PARAM]) for key, text in values.items()]
    for start in range(0, len(params), _PARAMS_A_CALL):
        client.log_batch(run_id, params=params[start : start + _PARAMS_A_CALL])


def send_metrics(client: MlflowClient, run_id: str, metrics: list[Measurement]) -> None:
    """Send metrics in calls of a size that MLflow takes; what is sent is removed from `metrics`."""
    from mlflow.entities import Metric

    while metrics:
        client.log_batch(run_id, metrics=[Metric(*measurement) for measurement in metrics[:_METRICS_A_CALL]])
        del metrics[:_METRICS_A_CALL]


def _leaves(values: Mapping[str, Any], *keys: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each value that is no further mapping, after its keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, *keys, key)
        else:
            yield (*keys, key), value
