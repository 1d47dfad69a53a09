"""A trained model as a folder: safetensors weights, configuration and tokenizer, no executable content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from diptych import config
from diptych.errors import DiptychError
from diptych.files import atomic_path, file_sha256
from diptych.model.backbones import restore_backbone
from diptych.model.dual_encoder import DualEncoder
from diptych.model.lean_transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from diptych.model.querybank import QueryBank
from diptych.model.towers import ImageTower, TextTower

FORMAT: Literal[4] = 4
_FIRST_READ = 2
"""First format that is read. Format 3 has weights for each direction of re-ranking, format 4 may have a calibration."""
WEIGHTS = "model.safetensors"
"""File name of the weights: the model's and the query bank's."""
_BANK = "querybank."


class Preprocessing(config.Section):
    """Preprocessing of images and texts that the towers were trained with, as in params.yaml."""

    image_size: Annotated[int, Field(ge=32)]
    resize: Literal["stretch", "crop"]
    max_tokens: config.Positive


class FusionWeights(config.Section):
    """Weights of the fusion's scores in re-ranking for the queries of one direction."""

    itm: Annotated[float, Field(ge=0)]
    alignment: Annotated[float, Field(ge=0)]


class Reranking(config.Section):
    """Re-ranking of the `top_k` candidates, and the strength of the qb_norm biases."""

    top_k: config.Positive
    i2t: FusionWeights
    t2i: FusionWeights
    bias_strength: config.Share


class ReliabilityGroup(config.Section):
    """Queries of similar probability."""

    expected: config.Share
    """Mean probability that the first result is right."""
    right: config.Share
    """Share of queries whose first result is right."""
    queries: config.Positive


class Calibration(config.Section):
    """Logistic regression of "the first image found for a text is the right one", and how far it holds."""

    intercept: float
    score: float
    """Coefficient of the first score."""
    margin: float
    """Coefficient of its margin to the second."""
    images: config.Positive
    """Number of images in the gallery that it was fitted on."""
    reliability: list[ReliabilityGroup]
    """Reliability curve there."""


class _Description(config.Section):
    """config.json."""

    format: Literal[4]
    model: config.Model
    image_backbone: dict[str, Any]
    text_backbone: dict[str, Any]
    preprocessing: Preprocessing
    reranking: Reranking
    calibration: Calibration | None = None


class LoadedModel(NamedTuple):
    """A model with everything needed to use it."""

    model: DualEncoder
    """In evaluation mode."""
    tokenizer: PreTrainedTokenizerBase
    preprocessing: Preprocessing
    reranking: Reranking
    querybank: QueryBank
    """Query bank whose biases are subtracted from the cosines."""
    calibration: Calibration | None = None
    """None where val could not tell right first results from wrong ones."""


def save_model(
    folder: Path,
    model: DualEncoder,
    settings: config.Model,
    tokenizer_folder: Path,
    preprocessing: Preprocessing,
    reranking: Reranking,
    querybank: QueryBank,
    calibration: Calibration | None = None,
) -> None:
    """Write the folder atomically, replacing an older one; the query bank's strength is kept in `reranking`."""
    description = _Description(
        format=FORMAT,
        model=settings,
        image_backbone=_configuration(model.image_tower.backbone.config),
        text_backbone=_configuration(model.text_tower.backbone.config),
        preprocessing=preprocessing,
        reranking=reranking,
        calibration=calibration,
    )
    with atomic_path(folder) as temporary:
        shutil.copytree(tokenizer_folder, temporary)
        bank = {f"{_BANK}image": querybank.image, f"{_BANK}text": querybank.text}
        weights = {**model.state_dict(), **bank}
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, temporary / WEIGHTS)
        content = json.dumps(description.model_dump(), indent=2, sort_keys=True)
        (temporary / "config.json").write_text(content + "\n", encoding="utf-8")


def load_model(folder: Path, device: str = "cpu") -> LoadedModel:
    """Read a folder that `save_model` wrote.

    Raises:
        DiptychError: a file is missing, damaged or of another format, or one does not fit the others.
    """
    try:
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content["format"] not in range(_FIRST_READ, FORMAT + 1):
            raise ValueError(f"config.json is not of model formats {_FIRST_READ} to {FORMAT}, which this diptych reads")
        description = _Description.model_validate(_of_this_format(content))
        weights = load_file(folder / WEIGHTS)
        for name, tensor in weights.items():
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} in {WEIGHTS} holds NaN or infinity")
        model = _restore(description)
        bank = [_queries(weights.pop(f"{_BANK}{side}"), description.model.dim) for side in ("image", "text")]
        model.load_state_dict(weights)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        _try(model.eval(), tokenizer, description.preprocessing)
    except Exception as error:  # each architecture checks its fields differently
        raise DiptychError(f"{folder} does not hold a whole model ({error}); run `dvc repro train`.") from None
    image, text = (queries.to(device) for queries in bank)
    querybank = QueryBank(image, text, description.reranking.bias_strength)
    return LoadedModel(
        model.to(device),
        tokenizer,
        description.preprocessing,
        description.reranking,
        querybank,
        description.calibration,
    )


def weights_sha256(folder: Path) -> str:
    """Return the SHA-256 of the weights file, which identifies a model."""
    return file_sha256(folder / WEIGHTS)


def _of_this_format(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of config.json in this format; in format 2 both directions had the same weights."""
    if content["format"] > _FIRST_READ:
        return {**content, "format": FORMAT}
    rest = dict(content["reranking"])
    weights = {"itm": rest.pop("match_weight"), "alignment": rest.pop("alignment_weight")}
    return {**content, "format": FORMAT, "reranking": {**rest, "i2t": weights, "t2i": weights}}


@torch.inference_mode()
def _try(model: DualEncoder, tokenizer: PreTrainedTokenizerBase, preprocessing: Preprocessing) -> None:
    """Run the model on a blank image and a longest caption of the last token, to check that its files fit together."""
    if tokenizer.pad_token is None:
        raise ValueError("the tokenizer has no padding token")
    size, length = preprocessing.image_size, preprocessing.max_tokens
    image = model.encode_images(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    last = max(tokenizer.get_vocab().values())
    text = model.encode_texts(torch.full((1, length), last), torch.ones(1, length, dtype=torch.bool))
    itm = model.fuse(image.grid, text.tokens, text.mask).itm
    for tensor in (image.pooled, text.pooled, itm, model.logit_scale, 1 / model.logit_scale):
        if not torch.isfinite(tensor).all():
            raise ValueError("the model's outputs are not finite")


def _queries(queries: torch.Tensor, dim: int) -> torch.Tensor:
    """Return one side of the query bank after checking it."""
    lengths = queries.float().norm(dim=-1) if queries.is_floating_point() else queries
    if queries.ndim != 2 or queries.shape[1] != dim or not len(queries) or not ((lengths - 1).abs() < 0.01).all():
        raise ValueError(f"the querybank in {WEIGHTS} does not hold embeddings of {dim} dimensions and length one")
    return queries


def _restore(description: _Description) -> DualEncoder:
    settings, image_size = description.model, description.preprocessing.image_size
    # Mean and std are among the weights; these are placeholders until the weights are read.
    image_tower = ImageTower(
        restore_backbone(description.image_backbone), settings.dim, image_size, [0.0] * 3, [1.0] * 3
    )
    text_backbone = restore_backbone(description.text_backbone)
    return DualEncoder(image_tower, TextTower(text_backbone, settings.dim, settings.text_tower.layers), settings)


def _configuration(backbone: Any) -> dict[str, Any]:
    """Return the fields that differ from the architecture's defaults, without the origin of the weights."""
    content: dict[str, Any] = backbone.to_diff_dict()
    return {name: value for name, value in content.items() if not name.startswith("_")}
