"""Whether what was made again is what was registered: each thing compared, and by how much it differs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from diptych.files import file_sha256

SHOWN = 3
"""Of the things that differ, how many people are shown; the JSON has them all."""
NOTHING = "nothing"


Difference = dict[str, float | None]
"""Of a figure the `recorded` and the `found`, None where there is none; of a tensor the `largest` and the `mean`
absolute difference, None where there is no such number.
"""


class Finding(NamedTuple):
    """One thing, as it was registered and as it is now."""

    what: str
    identical: bool | None
    """None: it was not looked at, because something before it differs."""
    recorded: str = ""
    found: str = ""
    detail: str = ""
    differences: Mapping[str, Difference] = MappingProxyType({})
    """By the names of figures or tensors; of those alone that differ."""


def compare(what: str, recorded: str, found: str, detail: str = "") -> Finding:
    """Two hashes."""
    return Finding(what, recorded == found, recorded, found, "" if recorded == found else detail)


def compare_file(what: str, recorded: str, path: Path) -> Finding:
    """A file, by its SHA-256."""
    return compare(what, recorded, file_sha256(path) if path.is_file() else NOTHING)


def compare_weights(recorded: str, made: Path, registered: Path | None) -> Finding:
    """The weights by their SHA-256 and, where it differs, tensor by tensor with those of the registered package."""
    finding = compare_file("weights", recorded, made)
    if finding.identical or finding.found == NOTHING:
        return finding
    if registered is None or not registered.is_file():
        return finding._replace(detail="by how much is not known: the registered package is not at hand")
    differences = _tensor_differences(registered, made)
    return finding._replace(detail=_of_tensors(differences), differences=differences)


def compare_metrics(recorded: Mapping[str, float], path: Path) -> Finding:
    """Each figure of reports/metrics.json with that of the version's run."""
    from diptych.registry.register import flat_metrics

    if not path.is_file():
        return Finding("metrics", False, f"{len(recorded)} figures", NOTHING)
    found = flat_metrics(json.loads(path.read_text(encoding="utf-8")))
    rankings = {name.partition("/")[0] for name in found}
    of_the_test = {name: value for name, value in recorded.items() if name.partition("/")[0] in rankings}
    differences: dict[str, Difference] = {
        name: {"recorded": recorded.get(name), "found": found.get(name)}
        for name in sorted(of_the_test | found)
        if recorded.get(name) != found.get(name)
    }
    counts = f"{len(of_the_test)} figures", f"{len(found)} figures"
    return Finding("metrics", not differences, *counts, _of_figures(differences), differences)


def _tensor_differences(registered: Path, made: Path) -> dict[str, Difference]:
    """Of the tensors that are not equal; None where one side has none, or one of another shape."""
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
    """JSON has no NaN; a tensor that is not a number on one side has no distance."""
    number = float(value)
    return number if number - number == 0 else None


def _of_tensors(differences: Mapping[str, Difference]) -> str:
    if not differences:
        return "all tensors are equal, the file around them is not"
    unlike = [name for name, one in differences.items() if one["largest"] is None]
    ordered = sorted(
        (name for name in differences if name not in unlike), key=lambda name: -(differences[name]["largest"] or 0)
    )
    shown = [f"{name} cannot be compared" for name in unlike[:SHOWN]]
    shown += [
        f"{name} at most {differences[name]['largest']:.2g}, {differences[name]['mean']:.2g} on average"
        for name in ordered[: SHOWN - len(shown)]
    ]
    return _with_more(f"{len(differences)} tensors differ: ", shown, len(differences))


def _of_figures(differences: Mapping[str, Difference]) -> str:
    if not differences:
        return ""
    shown = []
    for name, one in list(differences.items())[:SHOWN]:
        before, now = one["recorded"], one["found"]
        if before is None or now is None:
            shown.append(f"{name} is {'new' if before is None else 'gone'}")
        else:
            shown.append(f"{name} {now - before:+.6g}")
    return _with_more(f"{len(differences)} differ: ", shown, len(differences))


def _with_more(head: str, shown: list[str], count: int) -> str:
    more = f"; and {count - len(shown)} more" if count > len(shown) else ""
    return head + "; ".join(shown) + more
