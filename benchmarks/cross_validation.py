"""Cross-validation of recipes: what each variant gains over the first one, on images that chose nothing.

    python benchmarks/cross_validation.py WORKSPACE "NAME: KEY=VALUE KEY=VALUE" ... [--preset PRESET] [--folds 5]
        [--only 0 1] [--seeds 1] [--log trials.jsonl]

WORKSPACE is a project in which `preprocess` has run with this preset, by default its presets/flickr8k-cpu.yaml. All
images of its splits are divided into folds by their content. Each variant is the preset with some keys of the sections
model, train and evaluate changed, such as "longer: train.epochs=20 train.warmup=0.2"; the preset itself comes first. It
is trained on each fold with the seeds from 0, chooses on the fold's val part, and ranks its test part. Differences are
those of the same folds and seeds, with 95 % intervals over the folds that were trained on, of which there must be two.
What is in the log is not trained again with the same data, code, device and precision, so a run that was stopped goes
on, and trials add up. Prints the table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import diptych
from diptych.config import Params, load_params, parse_yaml, validated
from diptych.data.prepared import Prepared
from diptych.errors import DiptychError
from diptych.files import sources_sha256
from diptych.model.device import choose_precision, prepare
from diptych.model.package import Preprocessing
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.uncertainty import gain_over_folds
from diptych.training.cross_validation import CrossValidation

PRESET = Path("presets/flickr8k-cpu.yaml")
"""The default preset, in the workspace."""
FIRST = "preset"
"""Name of the preset among the variants."""
OF_A_VARIANT = ("model", "train", "evaluate")
"""Sections in which variants differ: all have the seeds, images and folds of the preset."""
STAGES = ("towers", "qb_norm", "reranked")
CONTROLS = ("shuffled_images", "mlp_fusion")
COLUMNS = (
    "variant",
    "folds",
    *STAGES,
    "fusion over qb_norm",
    "fusion over its controls",
    "towers over the preset's",
    "re-ranked over the preset's",
    "seconds",
)
Trial = dict[str, Any]


def variants(preset: Params, given: list[str]) -> dict[str, Params]:
    """Return the settings of each variant by its name; the preset is the first.

    Raises:
        DiptychError: a variant has no name of its own, changes nothing, or its changes are refused.
    """
    made = {FIRST: preset}
    for text in given:
        name, colon, changes = (part.strip() for part in text.partition(":"))
        if not colon or not name or "=" in name:
            raise DiptychError(f'variant "{text}" has no name: write "NAME: KEY=VALUE".')
        if name in made:
            which = "is the name of the preset itself" if name == FIRST else "is the name of two variants"
            raise DiptychError(f'"{name}" {which}: give each variant a name of its own.')
        made[name] = changed(preset, changes.split(), f'variant "{name}"')
    return made


def changed(preset: Params, changes: list[str], source: str) -> Params:
    """Return the preset with `changes`, each KEY=VALUE; `source` is the variant's name in an error."""
    content = preset.model_dump(by_alias=True)
    for change in changes:
        key, _, value = change.partition("=")
        if not value:
            raise DiptychError(f"{source}: {change} lacks a value: write KEY=VALUE.")
        *path, last = key.split(".")
        if not path or path[0] not in OF_A_VARIANT:
            raise DiptychError(
                f"{source}: {key} is not a key of {', '.join(OF_A_VARIANT)}. Seeds, images and folds are those of the "
                "preset for all variants: change the preset, or --seeds."
            )
        section = content
        for depth, part in enumerate(path, start=1):
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise DiptychError(f"{source}: {key} is no key, as {'.'.join(path[:depth])} holds none in the preset.")
        section[last] = parse_yaml(value, f"{source}: {change}")
    params = validated(content, source)
    if params == preset:
        raise DiptychError(f"{source} changes nothing: the preset has these values.")
    if of_tokenizer(params) != of_tokenizer(preset):
        raise DiptychError(f"{source} has another text tower, and captions were prepared for the preset's.")
    return params


def of_tokenizer(params: Params) -> tuple[str | None, str | None]:
    """Return what names the tokenizer of the captions."""
    tower = params.model.text_tower
    return tower.pretrained, tower.revision


def prepared_by(preset: Params) -> Prepared:
    """Return the prepared dataset of the workspace.

    Raises:
        DiptychError: there is none, or it was prepared with other settings than the preset's.
    """
    prepared = Prepared(Path("artifacts/prepared"), preset.data.splits)
    for name in Preprocessing.model_fields:
        present, wanted = prepared.settings[name], getattr(preset.preprocess, name)
        if present != wanted:
            raise DiptychError(
                f"{prepared.folder} has preprocess.{name} {present}, and the preset {wanted}: make the preset the "
                "params.yaml of the workspace, and run `dvc repro preprocess` there."
            )
    return prepared


@dataclass(frozen=True)
class Trials:
    """Trials on the folds of a dataset, each from the log or trained now."""

    validation: CrossValidation
    prepared: Prepared
    device: torch.device
    log: Path

    def trial(self, name: str, params: Params, fold: int) -> Trial:
        """Return the trial of a variant on a fold."""
        folds = self.validation.folds
        key = key_of(params, fold, len(folds), self.prepared, self.device)
        if (known := read_log(self.log).get(key)) is not None:
            return known
        started = time.perf_counter()
        ranks = self.validation.ranks(params, folds[fold])
        made = {
            "key": key,
            "variant": name,
            "fold": fold,
            "folds": len(folds),
            "seed": params.seed,
            "rsum": {stage: metrics_from_ranks(*both)["rsum"] for stage, both in ranks.items()},
            "recall@1": {stage: [float((own.rank == 1).mean()) for own in both] for stage, both in ranks.items()},
            "seconds": time.perf_counter() - started,
        }
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(made) + "\n")
        return made


def key_of(params: Params, fold: int, folds: int, data: Prepared, device: torch.device) -> str:
    """Return the identity of a trial, which depends on its settings, its images, the code and the arithmetic."""
    sections = {"seed", "data", "preprocess", "baselines", "model", "train", "evaluate"}
    content = params.model_dump(by_alias=True, include=sections)
    code = sources_sha256(Path(diptych.__file__).parent, ("data", "model", "retrieval", "training"))
    arithmetic = [device.type, choose_precision(params.train.precision, device)]
    identity = [content, fold, folds, data.settings, data.image_hashes.tolist(), code, arithmetic]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()


def read_log(path: Path) -> dict[str, Trial]:
    """Return the trials of the log by their keys."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {trial["key"]: trial for trial in map(json.loads, lines)}


def rsums(trials: list[list[Trial]], name: str) -> NDArray[np.float64]:
    """Return the RSUM of a ranking in each seed and trained fold, (S, k)."""
    return np.array([[trial["rsum"][name] for trial in of_seed] for of_seed in trials])


def row(name: str, trials: list[list[Trial]], first: list[list[Trial]], *, has_fusion: bool) -> str:
    """Return a variant's row of the table; a dash is for what cannot be told."""
    trained, folds = len(trials[0]), trials[0][0]["folds"]
    means = [f"{rsums(trials, stage).mean():.1f}" for stage in STAGES]
    seconds = np.mean([trial["seconds"] for of_seed in trials for trial in of_seed])
    fused, controls = rsums(trials, "reranked"), [name for name in CONTROLS if name in trials[0][0]["rsum"]]
    differences = [
        fused - rsums(trials, "qb_norm") if has_fusion else None,
        fused - np.max([rsums(trials, control) for control in controls], axis=0) if controls else None,
        rsums(trials, "towers") - rsums(first, "towers") if name != FIRST else None,
        fused - rsums(first, "reranked") if name != FIRST else None,
    ]
    # One fold says nothing of the differences between folds.
    gains = ["–" if one is None or trained < 2 else gain_over_folds(one, folds).describe() for one in differences]
    return f"| {' | '.join([name, f'{trained} of {folds}', *means, *gains, f'{seconds:.0f}'])} |"


def at_least(smallest: int) -> Callable[[str], int]:
    """Return the type of an argument that is a whole number from `smallest` on."""

    def number(text: str) -> int:
        if int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text} is less than {smallest}")
        return int(text)

    return number


def read_arguments(given: list[str] | None = None) -> argparse.Namespace:
    """Return the arguments, with whole paths, and with the folds to train on in `only`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("variants", nargs="*", metavar="NAME: KEY=VALUE …")
    parser.add_argument("--preset", type=Path, help=f"default: {PRESET} in the workspace")
    parser.add_argument("--folds", type=at_least(2), default=5)
    parser.add_argument("--only", type=at_least(0), nargs="+", help="folds to train on, from 0; default: all")
    parser.add_argument("--seeds", type=at_least(1), default=1)
    parser.add_argument("--log", type=Path, default=Path("trials.jsonl"))
    arguments = parser.parse_args(given)
    # Relative paths are those of the caller; the preset's paths of towers are those of the workspace.
    arguments.preset = (arguments.preset or arguments.workspace / PRESET).absolute()
    arguments.log = arguments.log.absolute()
    # A fold that is named twice is one fold.
    arguments.only = sorted(set(arguments.only or range(arguments.folds)))
    if arguments.only[-1] >= arguments.folds:
        parser.error(f"argument --only: {arguments.only[-1]}: the folds are 0 to {arguments.folds - 1}")
    if not arguments.workspace.is_dir():
        parser.error(f"argument workspace: {arguments.workspace} is no folder")
    if not arguments.log.parent.is_dir():
        parser.error(f"argument --log: {arguments.log.parent} is no folder")
    try:
        arguments.variants = variants(load_params(arguments.preset), arguments.variants)
    except DiptychError as error:
        parser.error(str(error))
    return arguments


def compare(arguments: argparse.Namespace) -> None:
    """Train what the log lacks, and print the table."""
    os.chdir(arguments.workspace)
    preset: Params = arguments.variants[FIRST]
    device = prepare(preset.device, preset.threads)
    prepared = prepared_by(preset)
    validation = CrossValidation(
        prepared,
        arguments.folds,
        roles=("train", "val", "test"),
        params=preset,
        cache=Path(".diptych/cache/features"),
        device=device,
    )
    trials = Trials(validation, prepared, device, arguments.log)
    made = {}
    for name, params in arguments.variants.items():
        seeded = [params.model_copy(update={"seed": seed}) for seed in range(arguments.seeds)]
        made[name] = [[trials.trial(name, own, fold) for fold in arguments.only] for own in seeded]
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name, params in arguments.variants.items():
        print(row(name, made[name], made[FIRST], has_fusion=params.train.objectives.itm > 0))


def main() -> None:
    """Compare the variants; an error that the user can repair is one message."""
    arguments = read_arguments()
    try:
        compare(arguments)
    except DiptychError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
