"""A trained model as a folder: safetensors weights, configuration and tokenizer, and nothing that is executed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from diptych import config
from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.model.backbones import restore_backbone
from diptych.model.dual_encoder import DualEncoder
from diptych.model.querybank import QueryBank
from diptych.model.towers import ImageTower, TextTower

FORMAT = 2
WEIGHTS = "model.safetensors"
"""Of the model, and the querybank."""
_BANK = "querybank."


class LoadedModel(NamedTuple):
    """A model with all it takes to use it."""

    model: DualEncoder
    """In evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    preprocessing: dict[str, Any]
    """image_size, resize and max_tokens, as in params.yaml."""
    reranking: dict[str, Any]
    """top_k, and what the fusion's logits count beside the scaled cosine: match_weight, alignment_weight."""
    querybank: QueryBank
    """By which items are ranked when they are found."""


def save_model(
    folder: Path,
    model: DualEncoder,
    settings: config.Model,
    tokenizer_folder: Path,
    preprocessing: dict[str, Any],
    reranking: dict[str, Any],
    querybank: QueryBank,
) -> None:
    """Writes the folder as a whole, in place of an older one."""
    description = {
        "format": FORMAT,
        "model": settings.model_dump(),
        "image_backbone": _configuration(model.image_tower.backbone.config),
        "text_backbone": _configuration(model.text_tower.backbone.config),
        "preprocessing": preprocessing,
        "reranking": {**reranking, "bias_strength": querybank.strength},
    }
    with atomic_path(folder) as temporary:
        shutil.copytree(tokenizer_folder, temporary)
        bank = {f"{_BANK}image": querybank.image, f"{_BANK}text": querybank.text}
        weights = {**model.state_dict(), **bank}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, temporary / WEIGHTS)
        (temporary / "config.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")


def load_model(folder: Path, device: str = "cpu") -> LoadedModel:
    """Reads what `save_model` wrote.

    Raises:
        DiptychError: a file is missing, damaged or of another format.
    """
    try:
        description = json.loads((folder / "config.json").read_text())
        weights = load_file(folder / WEIGHTS)
        if description["format"] != FORMAT:
            raise DiptychError(f"{folder} has model format {description['format']}; this diptych reads {FORMAT}.")
        model = _restore(description)
        image, text = (weights.pop(f"{_BANK}{side}").to(device) for side in ("image", "text"))
        model.load_state_dict(weights)
        preprocessing, reranking = description["preprocessing"], description["reranking"]
        querybank = QueryBank(image, text, reranking.pop("bias_strength"))
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise DiptychError(f"{folder} does not hold a whole model ({error}); run `dvc repro train`.") from None
    return LoadedModel(model.to(device).eval(), tokenizer, preprocessing, reranking, querybank)


def weights_sha256(folder: Path) -> str:
    """SHA-256 of the weights file, by which a model is known."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _restore(description: dict[str, Any]) -> DualEncoder:
    settings = config.Model.model_validate(description["model"])
    image_size = description["preprocessing"]["image_size"]
    # Mean and std are among the weights; these only stand in until they are read.
    image_tower = ImageTower(
        restore_backbone(description["image_backbone"]), settings.dim, image_size, [0.0] * 3, [1.0] * 3
    )
    text_backbone = restore_backbone(description["text_backbone"])
    return DualEncoder(image_tower, TextTower(text_backbone, settings.dim, settings.text_tower.layers), settings)


def _configuration(backbone: Any) -> dict[str, Any]:
    """What differs from the architecture's defaults; where the weights came from stays out."""
    content: dict[str, Any] = backbone.to_diff_dict()
    return {name: value for name, value in content.items() if not name.startswith("_")}
