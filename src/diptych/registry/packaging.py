"""The package of a model in MLflow: its weights, the library's code, the signature, and the packages that it needs."""

from __future__ import annotations

import json
import shutil
import tempfile
from importlib import metadata
from io import BytesIO
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types.schema import Array, ColSpec, DataType, Schema, TensorSpec
from PIL import Image

import diptych

PACKAGE = Path(diptych.__file__).parent
ENTRY = PACKAGE / "registry" / "packaged_model.py"
FILES = ("__init__.py", "config.py", "errors.py", "files.py", "progress.py", "retriever.py")
PACKAGES = ("data", "model", "retrieval")
"""Files and packages that a retriever is made of. Imports point one way, so these need nothing else of diptych."""
REQUIRED = (
    "huggingface-hub",
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pyarrow",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
)
"""Distributions that a retriever imports."""


def log_package(run_id: str, model: Path) -> tuple[str, str]:
    """Add the package of the model in the folder `model` to an MLflow run; return its address and id.

    Call it within `global_tracking_uri`.
    """
    with tempfile.TemporaryDirectory() as folder:
        code = copy_library(Path(folder))
        with mlflow.start_run(run_id=run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(ENTRY),
                # MLflow would decode a path as an address, and 50%25 is a name like any other.
                artifacts={"model": model.resolve().as_uri()},
                code_paths=[str(code)],
                signature=signature(),
                input_example=input_example(),
                pip_requirements=requirements(model),
            )
    return str(logged.model_uri), str(logged.model_id)


def copy_library(folder: Path) -> Path:
    """Copy the library to `folder`/diptych, in the package's own layout, and return that path."""
    target = folder / "diptych"
    target.mkdir()
    for name in FILES:
        shutil.copyfile(PACKAGE / name, target / name)
    for name in PACKAGES:
        shutil.copytree(PACKAGE / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def requirements(model: Path) -> list[str]:
    """Return the distributions that the model in the folder `model` needs, pinned to the installed versions."""
    description = json.loads((model / "config.json").read_text(encoding="utf-8"))
    is_timm = description["image_backbone"]["model_type"] == "timm_wrapper"
    return [_pinned(name) for name in sorted((*REQUIRED, *(["timm"] if is_timm else [])))]


def signature() -> ModelSignature:
    """Return the columns, which packaged_model.py documents. Each is optional: a row holds a text, an image or both."""
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


def _pinned(distribution: str) -> str:
    # A local part such as +cpu names a build that package indexes do not have.
    return f"{distribution}=={metadata.version(distribution).partition('+')[0]}"
