"""What follows a training: the query bank from train, and what is chosen on val."""

from __future__ import annotations

from typing import Any, NamedTuple

from diptych.config import Params
from diptych.model.querybank import QueryBank
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
    if params.train.objectives.itm:
        candidates = candidate_logits(model, val, params.evaluate.top_k, **computing, description="re-rank val")
        weights = choose_weights(candidates, scale)
    return Finished(querybank, weights, val)
