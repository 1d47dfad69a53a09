"""`benchmarks/cross_validation.py` compares what it names, and refuses what it cannot compare."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from interrupting import forget_accelerator, measure_no_speed
from tiny import SIZE, model_settings, open_prepared, train_settings, write_prepared

from diptych.config import Params, load_params
from diptych.errors import DiptychError
from diptych.retrieval.uncertainty import gain_over_folds

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
import cross_validation
from cross_validation import FIRST, PRESET, Trial, key_of, read_arguments, row, variants

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
DEFAULT = load_params(ROOT / PRESET)
TEXTS = (str(cross_validation.__doc__), (ROOT / "docs/training.md").read_text(encoding="utf-8"))
EXAMPLES = sorted({example for text in TEXTS for example in re.findall(r'"([a-z ]+: [a-z_]+\.[^"]+)"', text)})


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a prepared dataset, and with the default preset for it."""
    root = tmp_path_factory.mktemp("workspace")
    write_prepared(root / "artifacts/prepared", train=20, val=8, test=8)
    preset = Params.model_validate(
        {
            "device": "cpu",
            "threads": 1,
            "data": {"splits": {"held_out": 0.2}},
            "preprocess": {"image_size": SIZE, "max_tokens": 16},
            "model": model_settings(),
            "train": train_settings(epochs=1, objectives={"itm": 0.0}),
            "evaluate": {"top_k": 4},
        }
    )
    (root / PRESET).parent.mkdir()
    (root / PRESET).write_text(yaml.safe_dump(preset.model_dump(by_alias=True)))
    return root


def refusal(*given: str) -> str:
    with pytest.raises(DiptychError) as caught:
        variants(DEFAULT, list(given))
    return str(caught.value)


def trials(*rsum: float, folds: int = 5) -> list[list[Trial]]:
    """A seed with a trial on each of the first folds; qb_norm adds one to the towers, a fusion nothing."""
    stages = [{"towers": one, "qb_norm": one + 1, "reranked": one + 1} for one in rsum]
    return [[{"rsum": own, "folds": folds, "seconds": 60.0} for own in stages]]


def cells(name: str, own: list[list[Trial]], first: list[list[Trial]], *, has_fusion: bool = True) -> dict[str, str]:
    shown = row(name, own, first, has_fusion=has_fusion).strip("| ").split(" | ")
    return dict(zip(cross_validation.COLUMNS, shown, strict=True))


def test_there_are_documented_examples() -> None:
    assert len(EXAMPLES) > 1


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_documented_example_is_what_it_is_called(example: str) -> None:
    first, longer = variants(DEFAULT, [example]).values()
    assert first == DEFAULT
    assert example.startswith("longer:")
    assert longer.train.epochs > DEFAULT.train.epochs


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["a: seed=3"], 'variant "a": seed is not a key of model, train, evaluate'),
        (["a: preprocess.image_size=64"], "preprocess.image_size is not a key of model"),
        (["a: data.splits.held_out=0.2"], "data.splits.held_out is not a key of model"),
        (["a: trian.epochs=3"], "trian.epochs is not a key of model"),
        (["a: train={}"], "train is not a key of model"),
        (["preset: train.epochs=20"], '"preset" is the name of the preset itself'),
        (["a: train.epochs=20", "a: train.epochs=24"], '"a" is the name of two variants'),
        (["train.epochs=20"], 'variant "train.epochs=20" has no name'),
        (["train.launch=[a:b]"], "has no name"),
        ([": train.epochs=20"], "has no name"),
        (["a:"], 'variant "a" changes nothing'),
        (["a: train.epochs=16"], 'variant "a" changes nothing'),
        (["a: train.epochs"], 'variant "a": train.epochs lacks a value'),
        (["a: train.epochs="], 'variant "a": train.epochs= lacks a value'),
        (["a: train.epoch=3"], "train.epoch: unknown key"),
        (["a: train.towers.epoch=3"], "train.towers: unknown key"),
        (["a: train.epochs=many"], "train.epochs: input should be a valid integer (it is 'many')"),
        (["a: train.launch=[a"], 'variant "a": train.launch=[a is not valid YAML'),
        (["a: train.patience.x.y=3"], "train.patience.x.y is no key, as train.patience holds none"),
        (["a: train.patience.x=3"], "train.patience.x is no key, as train.patience holds none"),
        (["a: train.fusion_epochs=6"], "train: in fusion_epochs (6) the fusion learns"),
        (["a: model.text_tower.pretrained=./weights/bert"], 'variant "a" has another text tower'),
    ],
)
def test_a_variant_that_would_not_be_compared_as_it_says_is_refused(given: list[str], expected: str) -> None:
    assert expected in refusal(*given)


@pytest.mark.parametrize("trained", [2, 3, 5])
def test_the_interval_over_some_folds_is_that_of_as_many_of_all(trained: int) -> None:
    own, first = [100.0, 104.0, 109.0, 103.0, 105.0][:trained], [99.0, 98.0, 97.0, 99.0, 98.0][:trained]
    shown = cells("longer", trials(*own), trials(*first))
    expected = gain_over_folds(np.subtract([own], [first]), folds=5).describe()
    assert shown["folds"] == f"{trained} of 5"
    assert shown["towers over the preset's"] == shown["re-ranked over the preset's"] == expected


def test_of_one_fold_no_interval_is_told() -> None:
    shown = cells("longer", trials(100.0), trials(99.0))
    assert (shown["folds"], shown["towers over the preset's"], shown["towers"]) == ("1 of 5", "–", "100.0")


def test_a_fusion_that_was_not_trained_adds_nothing_that_could_be_told() -> None:
    of_two = trials(100.0, 104.0), trials(99.0, 98.0)
    assert cells("longer", *of_two, has_fusion=False)["fusion over qb_norm"] == "–"
    assert cells("longer", *of_two)["fusion over qb_norm"] == "+0.0 (+0.0 to +0.0)"


def test_the_preset_has_no_gain_over_itself() -> None:
    first = trials(100.0, 104.0)
    shown = cells(FIRST, first, first)
    assert (shown["towers over the preset's"], shown["re-ranked over the preset's"]) == ("–", "–")


def test_a_trial_is_known_by_its_device_and_precision(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, keys = open_prepared(workspace / "artifacts/prepared"), set()
    for device in (CPU, torch.device("mps")):
        for precision in ("no", "bf16"):
            monkeypatch.setattr(cross_validation, "choose_precision", lambda name, device, chosen=precision: chosen)
            keys |= {key_of(DEFAULT, 0, 5, prepared, device) for _ in range(2)}
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--only", "7"], "argument --only: 7: the folds are 0 to 4"),
        (["--only", "-1"], "argument --only: -1 is less than 0"),
        (["--seeds", "0"], "argument --seeds: 0 is less than 1"),
        (["--folds", "1"], "argument --folds: 1 is less than 2"),
        (["--folds", "many"], "argument --folds: invalid number value: 'many'"),
        (["--log", "nowhere/trials.jsonl"], "nowhere is no folder"),
        (["--preset", "nowhere.yaml"], "nowhere.yaml is missing"),
        (["a: train.epoch=3"], "train.epoch: unknown key"),
    ],
)
def test_arguments_that_cannot_be_are_refused(
    workspace: Path, capsys: pytest.CaptureFixture[str], given: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        read_arguments([str(workspace), *given])
    assert caught.value.code == 2
    assert expected in capsys.readouterr().err


def test_a_missing_workspace_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        read_arguments([str(tmp_path / "nowhere")])
    assert "nowhere is no folder" in capsys.readouterr().err


def test_relative_paths_are_those_of_the_caller(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_bytes((workspace / PRESET).read_bytes())
    monkeypatch.chdir(tmp_path)
    arguments = read_arguments([str(workspace), "--preset", "mine.yaml"])
    assert (arguments.preset, arguments.log) == (tmp_path / "mine.yaml", tmp_path / "trials.jsonl")
    assert read_arguments([str(workspace)]).preset == workspace / PRESET


def run(monkeypatch: pytest.MonkeyPatch, *given: str) -> None:
    monkeypatch.chdir(Path.cwd())  # and back in the end
    monkeypatch.setattr(sys, "argv", ["cross_validation.py", *given])
    threads = torch.get_num_threads()
    measure_no_speed(monkeypatch)
    try:
        cross_validation.main()
    finally:
        torch.set_num_threads(threads)
        forget_accelerator()


@pytest.mark.parametrize(("key", "value"), [("image_size", 64), ("max_tokens", 20), ("resize", "crop")])
def test_images_and_captions_of_other_settings_are_refused(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any
) -> None:
    content = yaml.safe_load((workspace / PRESET).read_text())
    content["preprocess"][key] = value
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SystemExit, match=rf"artifacts/prepared has preprocess\.{key} .*, and the preset {value}"):
        run(monkeypatch, str(workspace), "--preset", str(tmp_path / "other.yaml"))


@pytest.mark.slow
def test_a_fold_that_is_named_twice_is_trained_once_and_two_folds_have_an_interval(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "trials.jsonl"
    given = (str(workspace), "slower: train.learning_rate=1e-4", "--folds", "3", "--only", "1", "0", "1")
    run(monkeypatch, *given, "--log", str(log))
    trained = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(trial["variant"], trial["fold"]) for trial in trained] == [
        (name, fold) for name in (FIRST, "slower") for fold in (0, 1)
    ]
    preset, slower = capsys.readouterr().out.splitlines()[-2:]
    assert preset.startswith("| preset | 2 of 3 | ")
    assert re.search(r"slower \| 2 of 3 .* – \| – \| \S+ \(\S+ to \S+\) \| \S+ \(\S+ to \S+\) \|", slower)
    run(monkeypatch, *given, "--log", str(log))
    assert len(log.read_text().splitlines()) == len(trained)
