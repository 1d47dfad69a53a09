"""The model as MLflow loads it: a pyfunc from code, with weights in safetensors and nothing pickled.

This file is copied into the package together with the modules of diptych that it imports. It runs in a process that has
neither the project nor its other dependencies.

A row of the input has `text`, `image` (the bytes of an image file) or both. A row of the output has

* `embedding` and `bias`, where the input is a text or an image alone. Embeddings have length one, so the inner product
  of two is their cosine. A query ranks items by this cosine minus the bias of the item;
* `similarity`, `match`, `alignment` and `score`, where the input is a pair: the cosine, the logit of image-text
  matching, the token-alignment score, and the score of re-ranking, which joins the three minus both biases. `match`
  and `alignment` are 0 where the model's fusion has no weights: it was not trained, or ranked no better on val.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc.model import PythonModel

from diptych.retriever import Encoded, ImageInputError, Retriever

EMBEDDING, PAIR = ["embedding", "bias"], ["similarity", "match", "alignment", "score"]
"""Columns of the output for a text or an image alone, and for a pair."""


class PackagedModel(PythonModel):
    """A retriever behind MLflow's interface: it embeds texts and images, and scores pairs."""

    def load_context(self, context: Any) -> None:
        """Read the weights, onto a GPU if there is one."""
        self.retriever = Retriever.load(Path(context.artifacts["model"]))

    def predict(
        self,
        context: Any,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """Return one output row for each row of the input, in its order.

        Raises:
            ValueError: a row has neither text nor image, something else in their place, or bytes that are no image; the
                message names the row.
        """
        texts, images = _column(model_input, "text", str), _column(model_input, "image", bytes)
        with_text, with_image = (np.array([item is not None for item in items], bool) for items in (texts, images))
        if len(empty := np.flatnonzero(~with_text & ~with_image)):
            raise ValueError(f"row {empty[0]} has neither text nor image")
        output = pd.DataFrame({name: np.full(len(texts), np.nan) for name in EMBEDDING + PAIR})
        output["embedding"] = None
        text_rows, image_rows = np.flatnonzero(with_text & ~with_image), np.flatnonzero(with_image & ~with_text)
        pair_rows = np.flatnonzero(with_text & with_image)
        _fill(output, text_rows, self.retriever.encode_texts([texts[row] for row in text_rows]))
        with _named_rows(image_rows):
            _fill(output, image_rows, self.retriever.encode_images([images[row] for row in image_rows]))
        with _named_rows(pair_rows):
            scores = self.retriever.score_pairs([images[row] for row in pair_rows], [texts[row] for row in pair_rows])
        output.loc[pair_rows, PAIR] = np.stack(scores, axis=1).astype(float)
        return output.set_index(model_input.index)


def _fill(output: pd.DataFrame, rows: np.ndarray, encoded: Encoded) -> None:
    output.loc[rows, "embedding"] = pd.Series(list(encoded.embedding), index=rows, dtype=object)
    output.loc[rows, "bias"] = encoded.bias.astype(float)


@contextmanager
def _named_rows(rows: np.ndarray) -> Iterator[None]:
    """Name the row of an image that cannot be encoded."""
    try:
        yield
    except ImageInputError as error:
        raise ValueError(f"row {rows[error.index]}: {error.reason}") from None


def _column(frame: pd.DataFrame, name: str, kind: type[str] | type[bytes]) -> list[Any]:
    """Return the column with None for what is missing; all None where there is no such column."""
    if name not in frame:
        return [None] * len(frame)
    values = [bytes(value) if isinstance(value, bytearray | memoryview) else value for value in frame[name]]
    for row, value in enumerate(values):
        if not isinstance(value, kind) and not _is_missing(value):
            raise ValueError(f"row {row}: {name} must be {kind.__name__}, not {type(value).__name__}")
    return [value if isinstance(value, kind) else None for value in values]


def _is_missing(value: object) -> bool:
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


mlflow.models.set_model(PackagedModel())
