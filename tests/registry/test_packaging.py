"""A package brings what it needs, and nothing else."""

import ast
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.utils import canonicalize_name
from tiny_model import write_tiny_model

from diptych.registry import packaging

LOAD = """
import sys
sys.path.insert(0, sys.argv[1])
from diptych import Retriever
retriever = Retriever.load(sys.argv[2], "cpu")
retriever.rank(["a red square"], retriever.encode_images([], tokens=True))
print("\\n".join(module.__file__ for name, module in sys.modules.items() if name.startswith("diptych")))
"""


def test_the_copied_library_loads_a_model_and_imports_what_the_requirements_name(tmp_path, forks):
    copied = packaging.copy_library(tmp_path)
    model = write_tiny_model(tmp_path / "model")

    answer = subprocess.run(
        [forks.package_python, "-c", LOAD, str(tmp_path), str(model)], capture_output=True, text=True, check=True
    )

    paths = [Path(line) for line in answer.stdout.splitlines()]
    assert all(path.is_relative_to(copied) for path in paths)
    imported = {name for path in paths for name in imports_of(path)} - set(sys.stdlib_module_names) - {"diptych"}
    named = {canonicalize_name(line.partition("==")[0]) for line in packaging.requirements(model)}
    owners = packages_distributions()
    assert {name for name in imported if not named & {canonicalize_name(owner) for owner in owners[name]}} == set()


def imports_of(path: Path) -> set[str]:
    """Return the packages that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - {"__future__"}


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
        "ruamel.yaml",
    } <= names
    assert not names & {"prefect", "dvc", "great-expectations", "accelerate", "pytest", "timm"}


def test_a_model_with_a_tower_of_timm_requires_timm(tmp_path):
    (tmp_path / "config.json").write_text('{"image_backbone": {"model_type": "timm_wrapper"}}')

    assert any(line.startswith("timm==") for line in packaging.requirements(tmp_path))
