"""What follows a training: the query bank from train, and what is chosen on val."""

from __future__ import annotations

from typing import Any, NamedTuple

from diptych.config import Params
from diptych.model.package import Calibration
from diptych.model.querybank import QueryBank
from diptych.retrieval.calibration import calibrate, first_results
from diptych.retrieval.choices import choose_strength, choose_weights
from diptych.retrieval.embedding import Embedded, embed_querybank, embed_split
from diptych.retrieval.reranking import Directed, candidate_logits
from diptych.training.loop import Trainer


class Finished(NamedTuple):
    """What a trained model ranks by besides its weights."""

    querybank: QueryBank
    """Query bank from train; its strength was chosen on val."""
    weights: Directed
    """Weights of the fusion, chosen on val. A fusion that was not trained, or does not help there, has none."""
    val: Embedded
    """The val split, with its biases."""
    calibration: Calibration | None
    """Calibration on val; None where it cannot be fitted."""


def finish(trainer: Trainer, params: Params) -> Finished:
    """Return the query bank and the choices of a training that has ended."""
    model, inputs = trainer.model, trainer.val_inputs
    computing: Any = {"device": trainer.device, "precision": trainer.precision}
    batches = {**computing, "batch_size": params.evaluate.batch_size}
    querybank = embed_querybank(model, trainer.train_inputs, seed=params.seed, **batches, description="query bank")
    val = embed_split(model, inputs.split, inputs=inputs, **batches, description="embed val")
    scale, weights = model.logit_scale.item(), Directed()
    querybank = querybank._replace(strength=choose_strength(val, querybank, scale))
    val = val.biased(querybank, scale)
    # Without weights no candidate is scored by the fusion.
    scored = None if params.train.objectives.itm else weights
    candidates = candidate_logits(
        model, val, params.evaluate.top_k, **computing, weights=scored, description="re-rank val"
    )
    if params.train.objectives.itm:
        weights = choose_weights(candidates, scale)
    calibration = calibrate(first_results(candidates.t2i, scale, weights.t2i), len(val.image))
    return Finished(querybank, weights, val, calibration)
