"""Signature of a packaged model; packaged_model.py documents the columns."""

from __future__ import annotations

from io import BytesIO

import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Schema, TensorSpec
from PIL import Image


def signature() -> ModelSignature:
    """Return the signature. Every column is optional: a row may hold a text, an image or both."""
    inputs: list[ColSpec | TensorSpec] = [
        ColSpec(DataType.binary, "image", required=False),
        ColSpec(DataType.string, "text", required=False),
    ]
    outputs: list[ColSpec | TensorSpec] = [
        ColSpec(Array(DataType.double), "embedding", required=False),
        *(
            ColSpec(DataType.double, name, required=False)
            for name in ("bias", "similarity", "match", "alignment", "score")
        ),
    ]
    return ModelSignature(inputs=Schema(inputs), outputs=Schema(outputs))


def input_example() -> pd.DataFrame:
    """Return a pair: the bytes of a small image, and a sentence."""
    buffer = BytesIO()
    Image.new("RGB", (32, 32), (200, 30, 30)).save(buffer, "PNG")
    return pd.DataFrame({"image": [buffer.getvalue()], "text": ["a red square"]})
