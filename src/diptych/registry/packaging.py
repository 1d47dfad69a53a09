"""Contents of a packaged model besides its weights: the library's code, and the packages that it needs."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path

import diptych

PACKAGE = Path(diptych.__file__).parent
ENTRY = PACKAGE / "registry" / "packaged_model.py"
FILES = ("__init__.py", "config.py", "errors.py", "files.py", "progress.py", "retriever.py")
ROOMS = ("data", "model", "retrieval")
"""Files and rooms that a retriever is made of. Imports point one way, so these need nothing else of diptych."""
REQUIRED = (
    "huggingface-hub",
    "mlflow",
    "numpy",
    "pandas",
    "pillow",
    "pydantic",
    "ruamel.yaml",
    "safetensors",
    "tokenizers",
    "torch",
    "tqdm",
    "transformers",
)
"""Distributions that a retriever imports."""


def copy_library(folder: Path) -> Path:
    """Copy the library to `folder`/diptych, in the package's own layout, and return that path."""
    target = folder / "diptych"
    target.mkdir()
    for name in FILES:
        shutil.copyfile(PACKAGE / name, target / name)
    for name in ROOMS:
        shutil.copytree(PACKAGE / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    return target


def requirements(model: Path) -> list[str]:
    """Return the distributions that the model in the folder `model` needs, pinned to the installed versions."""
    description = json.loads((model / "config.json").read_text(encoding="utf-8"))
    is_timm = description["image_backbone"]["model_type"] == "timm_wrapper"
    return [_pinned(name) for name in sorted((*REQUIRED, *(["timm"] if is_timm else [])))]


def _pinned(distribution: str) -> str:
    # A local part such as +cpu names a build that package indexes do not have.
    return f"{distribution}=={metadata.version(distribution).partition('+')[0]}"
