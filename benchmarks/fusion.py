"""Effect of the fusion: what it adds to the towers, and whether its attention to the image is the cause.

    python benchmarks/fusion.py WORKSPACE [--preset presets/flickr8k-cpu.yaml] [--seeds 3]

WORKSPACE is a project in which `preprocess` has run with this preset. For each seed two models are trained: one with
cross-attention, and as a control one with an MLP of as many weights that sees only the means of both sides. Each is
measured on the test split by its towers alone, with qb_norm (query-bank normalization), re-ranked, and re-ranked with
the images shuffled among the pairs. A fusion that helps because it attends to the image cannot help there. The weights
of the fusion's logits are chosen on val, for the shuffled images too. Prints the table of docs/training.md: medians
over the seeds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from diptych.config import Params, load_params
from diptych.data.inputs import Inputs
from diptych.data.prepared import Prepared
from diptych.model.device import choose_device, choose_precision, keep_freed_memory, set_threads
from diptych.model.dual_encoder import DualEncoder, build_model
from diptych.retrieval.choices import choose_strength, choose_weights
from diptych.retrieval.embedding import Embedded, embed_querybank, embed_split
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.reranking import Directed, candidate_logits, reranked_ranks
from diptych.training.checkpoints import Checkpoints
from diptych.training.features import FeatureCache
from diptych.training.loop import Setup, Trainer

FUSIONS = {"cross-attention": True, "MLP of as many weights": False}


def train(params: Params, prepared: Prepared, device: torch.device, cache: Path) -> tuple[DualEncoder, Trainer]:
    """Train a model by `params`, as the train stage does; return it and its trainer."""
    torch.manual_seed(params.seed)
    settings = prepared.settings
    model = build_model(params.model, settings["image_size"], settings["vocabulary_size"], params.train.temperature)
    precision = choose_precision(params.train.precision, device)
    with tempfile.TemporaryDirectory() as checkpoints:
        trainer = Trainer(
            model,
            prepared.split("train"),
            prepared.split("val"),
            params.train,
            Setup(
                seed=params.seed,
                evaluation_batch=params.evaluate.batch_size,
                checkpoints=Checkpoints(Path(checkpoints), {}),
                report=lambda *_: None,
                device=device,
                features=FeatureCache(cache, limit_gib=params.train.features_gib, device=device, precision=precision),
            ),
        )
        trainer.run()
    return model, trainer


def measure(params: Params, prepared: Prepared, cache: Path) -> dict[str, float]:
    """Return RSUM on test: of the towers, with qb_norm, re-ranked, and re-ranked with shuffled images."""
    device = choose_device(params.device)
    model, trainer = train(params, prepared, device, cache)
    scale, batch_size = model.logit_scale.item(), params.evaluate.batch_size
    bank = embed_querybank(model, trainer.train_inputs, seed=params.seed, batch_size=batch_size, device=device)

    def embed(inputs: Inputs) -> Embedded:
        return embed_split(model, inputs.split, inputs=inputs, batch_size=batch_size, device=device)

    def rsum(embedded: Embedded, weights: Directed) -> float:
        candidates = candidate_logits(model, embedded, params.evaluate.top_k, device=device)
        return metrics_from_ranks(*reranked_ranks(candidates, scale, weights))["rsum"]

    def weights(embedded: Embedded) -> Directed:
        return choose_weights(candidate_logits(model, embedded, params.evaluate.top_k, device=device), scale)

    held_out = embed(trainer.val_inputs)
    bank = bank._replace(strength=choose_strength(held_out, bank, scale))
    raw = embed(Inputs(prepared.split("test")))
    val, test = held_out.biased(bank, scale), raw.biased(bank, scale)
    return {
        "towers": rsum(raw, Directed()),
        "qb_norm": rsum(test, Directed()),
        "re-ranked": rsum(test, weights(val)),
        "shuffled": rsum(shuffled(test), weights(shuffled(val))),
        "weights": sum(parameter.numel() for parameter in model.fusion.parameters()),
    }


def shuffled(embedded: Embedded) -> Embedded:
    """Give every image the grid of another image; the towers' ranking stays the same."""
    return replace(embedded, grid=embedded.grid.roll(1, dims=0))


def main() -> None:
    """Train and measure the models, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--preset", type=Path, default=Path("presets/flickr8k-cpu.yaml"))
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    os.chdir(arguments.workspace)
    params = load_params(arguments.preset)
    keep_freed_memory()
    set_threads(params.threads)
    prepared = Prepared(Path("artifacts/prepared"), params.data.splits)
    print("| fusion | weights | towers | qb_norm | re-ranked | with shuffled images |\n|---|---|---|---|---|---|")
    for name, attention in FUSIONS.items():
        fusion = params.model.fusion.model_copy(update={"attention": attention})
        model = params.model.model_copy(update={"fusion": fusion})
        rows = [
            measure(params.model_copy(update={"model": model, "seed": seed}), prepared, Path(".diptych/cache/features"))
            for seed in range(arguments.seeds)
        ]
        middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
        figures = " | ".join(f"{middle[key]:.1f}" for key in ("towers", "qb_norm", "re-ranked", "shuffled"))
        print(f"| {name} | {middle['weights']:,.0f} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
