"""The model as MLflow loads it: a pyfunc from code, with weights in safetensors and nothing pickled.

This file is copied into the package as it is, together with the few modules of diptych that it imports, and runs in a
process that has neither the project nor its other dependencies.

A row of the input has `text`, `image` (the bytes of an image file) or both. A row of the output has

* `embedding` and `bias`: of the text or of the image, whichever stands alone. Embeddings are of length one, so that an
  inner product of two is their cosine; what is found ranks by this cosine less its own bias;
* for a pair of both: `similarity`, their cosine; `match` and `alignment`, the fusion's logits that they belong
  together; and `score`, which joins the three, less the biases of both, as re-ranking does.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import numpy as np
import pandas as pd
import torch
from mlflow.pyfunc.model import PythonModel
from torch import Tensor

from diptych.config import Validate
from diptych.data.images import open_image, to_pixels
from diptych.model.dual_encoder import ImageFeatures, TextFeatures
from diptych.model.kernels import choose_attention
from diptych.model.package import load_model

BATCH = 64
"""Rows computed at once."""
MAX_PIXELS = Validate().max_pixels
"""Width × height; whoever serves the model is not to be drowned, whatever its dataset was allowed."""


class _Images(NamedTuple):
    """Images as the tower sees them, and their biases (B,)."""

    features: ImageFeatures
    bias: Tensor


class _Texts(NamedTuple):
    """Texts, likewise."""

    features: TextFeatures
    bias: Tensor


class PackagedModel(PythonModel):
    """Embeds texts and images, and scores pairs."""

    def load_context(self, context: Any) -> None:
        """Reads the weights, to the GPU where there is one."""
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        choose_attention(torch.device(self.device))
        self.loaded = load_model(Path(context.artifacts["model"]), self.device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """One output row for each of the input, in its order.

        Raises:
            ValueError: a row has neither text nor image, something else in their place, or bytes that are no image; the
                message names the row.
        """
        texts, images = _column(model_input, "text", str), _column(model_input, "image", bytes)
        for row, (text, image) in enumerate(zip(texts, images, strict=True)):
            if text is None and image is None:
                raise ValueError(f"row {row} has neither text nor image")
        with torch.inference_mode():
            rows = [
                row for part in _parts(len(model_input)) for row in self._rows(texts[part], images[part], part.start)
            ]
        columns = ["embedding", "bias", "similarity", "match", "alignment", "score"]
        return pd.DataFrame(rows, columns=columns, index=model_input.index).astype(
            dict.fromkeys(columns[1:], "float64")
        )

    def _rows(self, texts: list[str | None], images: list[bytes | None], first: int) -> list[list[Any]]:
        with_text = [i for i, text in enumerate(texts) if text is not None]
        with_image = [i for i, image in enumerate(images) if image is not None]
        pairs = [i for i in with_text if images[i] is not None]
        text = self._encode_texts([texts[i] or "" for i in with_text]) if with_text else None
        image = self._encode_images([images[i] or b"" for i in with_image], with_image, first) if with_image else None
        rows: list[list[Any]] = [[None, *[np.nan] * 5] for _ in texts]
        for side, members in ((text, with_text), (image, with_image)):
            for place, i in enumerate(members):
                if i not in pairs and side is not None:
                    rows[i][:2] = side.features.pooled[place].cpu().numpy(), side.bias[place].item()
        if pairs and text is not None and image is not None:
            scores = self._score(image, text, [with_image.index(i) for i in pairs], [with_text.index(i) for i in pairs])
            for i, values in zip(pairs, scores.tolist(), strict=True):
                rows[i][2:] = values
        return rows

    def _encode_texts(self, texts: list[str]) -> _Texts:
        length = self.loaded.preprocessing.max_tokens
        encoded = self.loaded.tokenizer(
            texts,
            truncation=True,
            max_length=length,
            padding=True,
            padding_side="right",
            return_tensors="pt",
            return_token_type_ids=False,
        ).to(self.device)
        model = self.loaded.model
        features = model.encode_texts(encoded["input_ids"], encoded["attention_mask"].bool())
        return _Texts(features, self.loaded.querybank.text_bias(features.pooled, model.logit_scale.item()))

    def _encode_images(self, images: list[bytes], places: list[int], first: int) -> _Images:
        settings = self.loaded.preprocessing
        pixels = []
        for place, content in zip(places, images, strict=True):
            try:
                image = open_image(bytes(content), MAX_PIXELS)
            except ValueError as error:
                raise ValueError(f"row {first + place}: {error}") from None
            pixels.append(to_pixels(image, settings.image_size, settings.resize))
        model = self.loaded.model
        features = model.encode_images(torch.from_numpy(np.stack(pixels)).to(self.device))
        return _Images(features, self.loaded.querybank.image_bias(features.pooled, model.logit_scale.item()))

    def _score(self, images: _Images, texts: _Texts, image: list[int], text: list[int]) -> Tensor:
        """Cosine, match logit, alignment and score of the P pairs of `image` and `text`, float (P, 4)."""
        model, seen, read = self.loaded.model, images.features, texts.features
        similarity = (seen.pooled[image] * read.pooled[text]).sum(dim=1)
        fused = model.fuse(seen.grid[image], read.tokens[text], read.mask[text])
        match, aligned = fused.score.float(), fused.alignment
        aligned = torch.zeros_like(match) if aligned is None else aligned.float()
        normalized = similarity - images.bias[image] - texts.bias[text]
        weights = self.loaded.reranking
        score = model.logit_scale * normalized + weights.match_weight * match + weights.alignment_weight * aligned
        return torch.stack([similarity, match, aligned, score], dim=1)


def _column(frame: pd.DataFrame, name: str, kind: type[str] | type[bytes]) -> list[Any]:
    """The column with None for what is missing; all None where there is no such column."""
    if name not in frame:
        return [None] * len(frame)
    values = [bytes(value) if isinstance(value, bytearray | memoryview) else value for value in frame[name]]
    for row, value in enumerate(values):
        if not isinstance(value, kind) and not _is_missing(value):
            raise ValueError(f"row {row}: {name} must be {kind.__name__}, not {type(value).__name__}")
    return [value if isinstance(value, kind) else None for value in values]


def _is_missing(value: object) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _parts(rows: int) -> Iterator[slice]:
    for start in range(0, rows, BATCH):
        yield slice(start, start + BATCH)


mlflow.models.set_model(PackagedModel())
