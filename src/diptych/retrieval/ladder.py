"""The ladder of rankings from chance to the model, and the verdicts on the claims that are made for the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diptych.retrieval.metrics import Metrics
from diptych.retrieval.uncertainty import Gain, Uncertainty

RUNGS = {
    "prior": "prior: what is typical",
    "image_only": "images: the nearest lend captions",
    "words_bm25": "words: predicted, BM25",
    "words_text_tower": "words: predicted, text tower",
    "ridge": "frozen towers: ridge regression",
    "cca": "frozen towers: CCA",
    "linear_heads": "frozen towers: linear heads",
    "mlp_heads": "frozen towers: MLP heads",
    "towers": "the model: towers",
    "qb_norm": "the model: query-bank normalization",
    "shuffled_images": "control: the fusion on other images",
    "mlp_fusion": "control: an MLP in place of attention",
    "reranked": "the model: re-ranked",
}
SINGLE_MODALITY = ("prior", "image_only", "words_bm25", "words_text_tower")
FROZEN = ("ridge", "cca", "linear_heads", "mlp_heads")
CONTROLS = ("shuffled_images", "mlp_fusion")
MODEL = ("towers", "qb_norm", "reranked")


class Rung(NamedTuple):
    """A ranking with its RSUM, and the confidence interval of that where there is one."""

    name: str
    rsum: float
    low: float | None = None
    high: float | None = None
    is_model: bool = False


class Verdict(NamedTuple):
    """A claim, judged on the same queries."""

    claim: str
    answer: str
    """yes, no, or not sure: where the interval holds zero."""
    over: str
    """Label of the ranking that the model is compared with."""
    gain: Gain


def rungs(metrics: Mapping[str, Metrics], uncertainty: Uncertainty, chance: Metrics) -> list[Rung]:
    """Return chance, and all of `metrics`, by name, in the order of the ladder."""
    ladder = [Rung("chance", chance["rsum"])]
    for name, label in RUNGS.items():
        if name in metrics:
            low, high = (uncertainty.intervals[name][side]["rsum"] for side in ("low", "high"))
            ladder.append(Rung(label, metrics[name]["rsum"], low, high, name in MODEL))
    return ladder


def verdicts(metrics: Mapping[str, Metrics], uncertainty: Uncertainty) -> list[Verdict]:
    """Judge the model against single modalities, its towers against frozen ones, and the fusion against its controls.

    Each is compared with the best of the others; a claim that has none to compare with is left out, and so are the
    fusion's where nothing is re-ranked.
    """
    last = [name for name in MODEL if name in metrics][-1]
    # A claim is judged by the stage that it is about, not by a later one.
    claims: list[tuple[str, str, Sequence[str]]] = [
        ("Joint modelling beats single-modality methods", last, SINGLE_MODALITY),
        ("Towers that learn beat frozen ones", "towers", FROZEN),
        ("The fusion helps", "reranked", ("qb_norm",)),
        ("The fusion beats its controls", "reranked", CONTROLS),
    ]
    return [
        _verdict(claim, name, max(present, key=lambda other: metrics[other]["rsum"]), uncertainty)
        for claim, name, others in claims
        if name in metrics and (present := [other for other in others if other in metrics])
    ]


def is_better_than_chance(metrics: Mapping[str, Metrics], uncertainty: Uncertainty, chance: Metrics) -> bool:
    """Return whether even the lower end of the last stage's RSUM is above that of chance."""
    *_, last = metrics
    return bool(uncertainty.intervals[last]["low"]["rsum"] > chance["rsum"])


def to_json(rungs: Sequence[Rung], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return the content of reports/ladder.json."""
    return {
        "rungs": [rung._asdict() for rung in rungs],
        "verdicts": [{**verdict._asdict(), "gain": verdict.gain._asdict()} for verdict in verdicts],
    }


def in_words(verdicts: Sequence[Verdict]) -> list[str]:
    """Return a line for each verdict."""
    return [
        f'{claim}: {answer}, by {gain.rsum:+.1f} RSUM ({gain.low:+.1f} to {gain.high:+.1f}) over "{over}"'
        for claim, answer, over, gain in verdicts
    ]


def _verdict(claim: str, name: str, over: str, uncertainty: Uncertainty) -> Verdict:
    gain = uncertainty.gains[name][over]
    answer = "yes" if gain.low > 0 else "no" if gain.high < 0 or gain.rsum == gain.low == gain.high == 0 else "not sure"
    return Verdict(claim, answer, RUNGS[over], gain)
