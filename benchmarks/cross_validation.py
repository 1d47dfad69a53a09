"""Cross-validation of recipes: what each variant gains over the first one, on images that chose nothing.

    python benchmarks/cross_validation.py WORKSPACE "NAME: KEY=VALUE KEY=VALUE" ... [--preset PRESET] [--folds 5]
        [--only 0 1] [--seeds 1] [--log trials.jsonl]

WORKSPACE is a project in which `preprocess` has run with this preset. All images of its splits are divided into folds
by their content. Each variant is the preset with some keys of params.yaml changed, such as
"longer: train.epochs=14 train.fusion_epochs=6"; the preset itself comes first. It is trained on each fold, chooses on
the fold's val part, and ranks its test part. Differences are those of the same folds and seeds, with 95 % intervals
over the folds where all folds are trained on. What is in the log is not trained again with the same data and code, so a
run that was stopped goes on, and trials add up. Prints the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

import diptych
from diptych.config import Params, load_params
from diptych.data.prepared import Prepared
from diptych.files import sources_sha256
from diptych.model.device import choose_device, keep_freed_memory, set_threads
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.uncertainty import gain_over_folds
from diptych.training.cross_validation import CrossValidation

STAGES = ("towers", "qb_norm", "reranked")
CONTROLS = ("shuffled_images", "mlp_fusion")
COLUMNS = (
    "variant",
    *STAGES,
    "fusion over qb_norm",
    "fusion over its controls",
    "towers over the preset's",
    "re-ranked over the preset's",
    "seconds",
)
Trial = dict[str, Any]


def variants(preset: Params, given: list[str]) -> dict[str, Params]:
    """Return the settings of each variant by its name; the preset is the first."""
    made = {"preset": preset}
    for text in given:
        name, _, changes = text.partition(":")
        content = preset.model_dump(by_alias=True)
        for change in changes.split():
            key, _, value = change.partition("=")
            section = content
            *path, last = key.split(".")
            for part in path:
                section = section[part]
            section[last] = YAML(typ="safe").load(value)
        made[name.strip()] = Params.model_validate(content)
    return made


def key_of(params: Params, fold: int, folds: int, data: Prepared) -> str:
    """Return the identity of a trial, which depends on its settings, its images and the code."""
    sections = {"seed", "data", "preprocess", "baselines", "model", "train", "evaluate"}
    content = params.model_dump(by_alias=True, include=sections)
    code = sources_sha256(Path(diptych.__file__).parent, ("data", "model", "retrieval", "training"))
    identity = [content, fold, folds, data.settings, data.image_hashes.tolist(), code]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def read_log(path: Path) -> dict[str, Trial]:
    """Return the trials of the log by their keys."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {trial["key"]: trial for trial in map(json.loads, lines)}


def rsums(trials: list[list[Trial]], name: str) -> NDArray[np.float64]:
    """Return the RSUM of a ranking in each seed and fold, (S, F)."""
    return np.array([[trial["rsum"][name] for trial in of_seed] for of_seed in trials])


def row(name: str, trials: list[list[Trial]], first: list[list[Trial]]) -> str:
    """Return a variant's row of the table; a dash is for what cannot be told."""
    cells = [f"{rsums(trials, stage).mean():.1f}" for stage in STAGES]
    seconds = np.mean([trial["seconds"] for of_seed in trials for trial in of_seed])
    fused, controls = rsums(trials, "reranked"), [name for name in CONTROLS if name in trials[0][0]["rsum"]]
    differences = [
        fused - rsums(trials, "qb_norm"),
        fused - np.max([rsums(trials, control) for control in controls], axis=0) if controls else None,
        rsums(trials, "towers") - rsums(first, "towers"),
        fused - rsums(first, "reranked"),
    ]
    folds = trials[0][0]["folds"]
    # The interval is that of all folds.
    is_whole = len(trials[0]) == folds
    cells += ["–" if one is None or not is_whole else gain_over_folds(one, folds).describe() for one in differences]
    return f"| {name} | {' | '.join(cells)} | {seconds:.0f} |"


def main() -> None:
    """Train what the log lacks, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("variants", nargs="*", metavar="NAME: KEY=VALUE …")
    parser.add_argument("--preset", type=Path, default=Path("presets/flickr8k-cpu.yaml"))
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--only", type=int, nargs="+", help="folds to train on, from 0")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--log", type=Path, default=Path("trials.jsonl"))
    arguments = parser.parse_args()
    log = arguments.log.absolute()
    os.chdir(arguments.workspace)
    preset = load_params(arguments.preset)
    keep_freed_memory()
    set_threads(preset.threads)
    chosen = arguments.only or range(arguments.folds)
    prepared = Prepared(Path("artifacts/prepared"), preset.data.splits)
    validation = CrossValidation(
        prepared,
        arguments.folds,
        roles=("train", "val", "test"),
        params=preset,
        cache=Path(".diptych/cache/features"),
        device=choose_device(preset.device),
    )
    made = {}
    for name, params in variants(preset, arguments.variants).items():
        made[name] = [
            [trial(validation, prepared, params.model_copy(update={"seed": seed}), fold, name, log) for fold in chosen]
            for seed in range(arguments.seeds)
        ]
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name, trials in made.items():
        print(row(name, trials, made["preset"]))


def trial(validation: CrossValidation, prepared: Prepared, params: Params, fold: int, name: str, log: Path) -> Trial:
    """Return the trial of a fold, from the log or trained now."""
    key = key_of(params, fold, len(validation.folds), prepared)
    if (known := read_log(log).get(key)) is not None:
        return known
    started = time.perf_counter()
    ranks = validation.ranks(params, validation.folds[fold])
    made = {
        "key": key,
        "variant": name,
        "fold": fold,
        "folds": len(validation.folds),
        "seed": params.seed,
        "rsum": {stage: metrics_from_ranks(*both)["rsum"] for stage, both in ranks.items()},
        "recall@1": {stage: [float((own.rank == 1).mean()) for own in both] for stage, both in ranks.items()},
        "seconds": time.perf_counter() - started,
    }
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(made) + "\n")
    return made


if __name__ == "__main__":
    main()
