"""Comparison of a reproduced version with the registered one: hashes, and differences of tensors and metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from diptych.errors import some
from diptych.files import file_sha256
from diptych.registry.figures import flat_metrics

_SHOWN = 3
"""Number of differences in the text for people; the JSON has them all."""
NOTHING = "nothing"
"""Hash of a file that does not exist."""

Difference = dict[str, float | None]
"""Difference of a metric or a tensor.

A metric has its `recorded` and its `found` value, None where there is none. A tensor has the `largest` and the `mean`
absolute difference, None where the tensors cannot be compared.
"""


class Finding(NamedTuple):
    """A file or a set of metrics as it was registered and as it is now."""

    what: str
    identical: bool | None
    """None where it was not compared, because an earlier finding differs."""
    recorded: str = ""
    found: str = ""
    detail: str = ""
    differences: Mapping[str, Difference] = MappingProxyType({})
    """Differences by the name of the metric or tensor, of those that differ."""


def compare(what: str, recorded: str, found: str, detail: str = "") -> Finding:
    """Return the finding on two hashes."""
    return Finding(what, recorded == found, recorded, found, "" if recorded == found else detail)


def compare_file(what: str, recorded: str, path: Path) -> Finding:
    """Return the finding on a file, by its SHA-256."""
    return compare(what, recorded, file_sha256(path) if path.is_file() else NOTHING)


def compare_weights(recorded: str, made: Path, registered: Path | None) -> Finding:
    """Return the finding on the weights, by SHA-256; where it differs, by each tensor of the registered package."""
    finding = compare_file("weights", recorded, made)
    if finding.identical or finding.found == NOTHING:
        return finding
    if registered is None or not registered.is_file():
        return finding._replace(detail="by how much is not known: the registered package is not at hand")
    differences = _tensor_differences(registered, made)
    return finding._replace(detail=_describe_tensors(differences), differences=differences)


def compare_metrics(recorded: Mapping[str, float], path: Path) -> Finding:
    """Return the finding on the metrics in reports/metrics.json, by those of the version's run."""
    if not path.is_file():
        return Finding("metrics", False, f"{len(recorded)} figures", NOTHING)
    found = flat_metrics(json.loads(path.read_text(encoding="utf-8")))
    rankings = {name.partition("/")[0] for name in found}
    recorded = {name: value for name, value in recorded.items() if name.partition("/")[0] in rankings}
    differences: dict[str, Difference] = {
        name: {"recorded": recorded.get(name), "found": found.get(name)}
        for name in sorted(recorded | found)
        if recorded.get(name) != found.get(name)
    }
    counts = f"{len(recorded)} figures", f"{len(found)} figures"
    return Finding("metrics", not differences, *counts, _describe_metrics(differences), differences)


def _tensor_differences(registered: Path, made: Path) -> dict[str, Difference]:
    """Return the differences of the tensors that are not equal; None where one is missing or has another shape."""
    from safetensors import safe_open

    differences: dict[str, Difference] = {}
    with safe_open(registered, "pt") as before, safe_open(made, "pt") as after:
        shared = set(before.keys()) & set(after.keys())
        for name in sorted({*before.keys(), *after.keys()}):
            first, second = (file.get_tensor(name) if name in shared else None for file in (before, after))
            if first is None or second is None or first.shape != second.shape:
                differences[name] = {"largest": None, "mean": None}
            elif not first.equal(second):
                distance = (first.double() - second.double()).abs()
                differences[name] = {"largest": _finite(distance.max()), "mean": _finite(distance.mean())}
    return differences


def _finite(value: Any) -> float | None:
    """Return the value, or None for NaN and infinity, which JSON does not have."""
    number = float(value)
    return number if number - number == 0 else None


def _describe_tensors(differences: Mapping[str, Difference]) -> str:
    if not differences:
        return "all tensors are equal, the file around them is not"
    # Tensors that cannot be compared come first, then the largest differences.
    ordered = sorted(differences.items(), key=lambda item: -math.inf if (size := item[1]["largest"]) is None else -size)
    texts = [
        f"{name} cannot be compared"
        if tensor["largest"] is None
        else f"{name} at most {tensor['largest']:.2g}, {tensor['mean']:.2g} on average"
        for name, tensor in ordered
    ]
    return f"{len(differences)} tensors differ: {some(texts, _SHOWN, '; ')}"


def _describe_metrics(differences: Mapping[str, Difference]) -> str:
    if not differences:
        return ""
    texts = []
    for name, metric in differences.items():
        before, now = metric["recorded"], metric["found"]
        if before is None or now is None:
            texts.append(f"{name} is {'new' if before is None else 'gone'}")
        else:
            texts.append(f"{name} {now - before:+.6g}")
    return f"{len(differences)} differ: {some(texts, _SHOWN, '; ')}"
