"""Transformers backbones for the towers: from a folder, from the hub's cache, or from scratch."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from diptych import config
from diptych.data.pretrained import locate
from diptych.errors import DiptychError, some
from diptych.model.lean_transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoModel,
    PretrainedConfig,
    PreTrainedModel,
    transformers_logging,
)


def image_backbone(tower: config.ImageTower) -> tuple[PreTrainedModel, list[float], list[float]]:
    """Return the image backbone of params.yaml, and the mean and std of its input."""
    if tower.pretrained is None:
        return _from_scratch("image_tower", tower, "resnet"), tower.mean, tower.std
    folder = locate(tower)
    return _load(folder), *_normalization(folder)


def text_backbone(tower: config.TextTower, vocabulary_size: int) -> PreTrainedModel:
    """Return the text backbone of params.yaml; from scratch it has `vocabulary_size` tokens."""
    if tower.pretrained is None:
        # RoBERTa counts positions from its padding token on; its default padding id is the id of our [UNK].
        return _from_scratch("text_tower", tower, "bert", vocab_size=vocabulary_size, pad_token_id=0)
    backbone = _load(locate(tower))
    if backbone.config.vocab_size < vocabulary_size:
        raise DiptychError(
            f"{tower.pretrained} knows {backbone.config.vocab_size} tokens, but the prepared captions have "
            f"{vocabulary_size}: they were made for another tower. Run `dvc repro preprocess`."
        )
    return backbone


def restore_backbone(configuration: dict[str, Any]) -> PreTrainedModel:
    """Build a backbone with random weights from the transformers configuration of a saved model."""
    return _build(AutoConfig.for_model(**configuration))


def _build(configuration: PretrainedConfig) -> PreTrainedModel:
    return AutoModel.from_config(configuration, **_without_pooler(configuration))


def _without_pooler(configuration: PretrainedConfig) -> dict[str, bool]:
    """Return the arguments that leave out an architecture's pooling layer; the model pools by itself."""
    model: Any = MODEL_MAPPING[type(configuration)]
    return {"add_pooling_layer": False} if "add_pooling_layer" in inspect.signature(model).parameters else {}


def _from_scratch(key: str, tower: config.Tower, model_type: str, **fields: Any) -> PreTrainedModel:
    """Build a random backbone; transformers accepts unknown fields silently, so their names are checked here."""
    default = AutoConfig.for_model(tower.config.get("model_type", model_type))
    for name in tower.config:
        if not hasattr(default, name):
            raise DiptychError(f"params.yaml: model.{key}.config.{name}: {type(default).__name__} has no such field.")
    try:
        return _build(AutoConfig.for_model(**{"model_type": model_type, **tower.config, **fields}))
    except Exception as error:  # each architecture checks its fields differently
        raise DiptychError(f"params.yaml: model.{key}.config makes no {type(default).__name__}: {error!r}") from None


def _load(folder: Path) -> PreTrainedModel:
    """Load a backbone from safetensors only: other formats may contain pickles."""
    # Its warnings are either expected or errors below.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        configuration = AutoConfig.from_pretrained(folder, local_files_only=True)
        model, info = AutoModel.from_pretrained(
            folder,
            config=configuration,
            local_files_only=True,
            use_safetensors=True,
            # Some weights are published in half precision, in which small optimizer steps would be lost.
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **_without_pooler(configuration),
        )
    except Exception as error:  # each architecture checks its fields differently
        raise DiptychError(f"{folder} does not hold a transformers model with safetensors weights: {error}") from None
    if missing := info["missing_keys"]:
        raise DiptychError(f"{folder}: model.safetensors lacks {some(sorted(missing))}")
    if mismatched := info["mismatched_keys"]:
        name, stored, expected = min(mismatched)
        raise DiptychError(
            f"{folder}: model.safetensors has {name} of shape {tuple(stored)}, but config.json wants {tuple(expected)}"
        )
    if broken := [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]:
        raise DiptychError(f"{folder}: model.safetensors holds NaN or infinity in {some(sorted(broken))}")
    if foreign := _foreign(model, info["unexpected_keys"]):
        raise DiptychError(
            f"{folder}: config.json has no place for weights in model.safetensors: {some(sorted(foreign))}"
        )
    return model


def _foreign(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Return the `unexpected` weights that lie within the backbone's own modules.

    Weights of a head for another task, which many published models contain, are not among them.
    """
    prefix = f"{model.base_model_prefix}."
    parts = {name.split(".")[0] for name in model.state_dict()}
    within = [name for name in unexpected if name.removeprefix(prefix).split(".")[0] in parts]
    return [name for name in within if not name.removeprefix(prefix).startswith("pooler.")]


def _normalization(folder: Path) -> tuple[list[float], list[float]]:
    """Return mean and std of the tower's input, from the file in which transformers or timm keeps them."""
    path = folder / "preprocessor_config.json"
    requirement = (
        "must give the image tower's image_mean and image_std: three numbers of 0..1 each, for red, green and blue"
    )
    try:
        if path.exists():
            content = json.loads(path.read_text(encoding="utf-8"))
            checked = config.ImageTower(mean=content["image_mean"], std=content["image_std"])
        else:
            content = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pretrained_cfg"]
            checked = config.ImageTower(mean=content["mean"], std=content["std"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DiptychError(f"{path} {requirement}; it has {key} {first['input']}.") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise DiptychError(f"{path} {requirement}.") from None
    return checked.mean, checked.std
