"""A package brings what it needs, and nothing else."""

import re
import subprocess
import sys

from tiny_model import write_tiny_model

from diptych.registry import packaging


def test_modules_are_followed_through_their_imports():
    names = {str(path.relative_to(packaging.PACKAGE)) for path in packaging.imported_modules(packaging.ENTRY)}

    assert {"__init__.py", "model/__init__.py", "model/package.py", "model/towers.py", "data/images.py"} <= names
    assert not {name for name in names if name.startswith(("cli", "training", "validation", "stages"))}


def test_the_copied_modules_import_without_the_project(tmp_path):
    copied = packaging.copy_modules(tmp_path)
    code = "import diptych.model.package, diptych.data.images; print(diptych.__file__)"

    answer = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
        capture_output=True,
        text=True,
    )

    assert answer.stdout.strip() == str(copied / "__init__.py")


def test_requirements_are_pinned_and_installable_from_an_index(tmp_path):
    requirements = packaging.requirements(write_tiny_model(tmp_path / "model"))

    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][^+]*", line) for line in requirements)
    names = {line.partition("==")[0].lower() for line in requirements}
    assert {
        "torch",
        "transformers",
        "safetensors",
        "mlflow",
        "pandas",
        "numpy",
        "pillow",
        "pydantic",
        "pyyaml",
    } <= names
    assert not names & {"prefect", "dvc", "great-expectations", "accelerate", "pytest", "timm"}


def test_a_model_with_a_tower_of_timm_requires_timm(tmp_path):
    (tmp_path / "config.json").write_text('{"image_backbone": {"model_type": "timm_wrapper"}}')

    assert any(line.startswith("timm==") for line in packaging.requirements(tmp_path))
