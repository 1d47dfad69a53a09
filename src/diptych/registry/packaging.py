"""What a packaged model brings along: the modules of diptych that it imports, and the packages that those import."""

from __future__ import annotations

import ast
import json
import shutil
import sys
from importlib import metadata
from pathlib import Path

import diptych

PACKAGE = Path(diptych.__file__).parent
ENTRY = PACKAGE / "registry" / "packaged_model.py"


def imported_modules(entry: Path) -> set[Path]:
    """The files of diptych that `entry` imports, directly or through others, and `entry` itself."""
    found: set[Path] = set()
    waiting = [entry]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [file for name in _imports(path) for file in _files(name)]
    return found


def copy_modules(folder: Path) -> Path:
    """Copies what `ENTRY` needs to `folder`/diptych, in the package's own layout; returns that."""
    for source in imported_modules(ENTRY) - {ENTRY}:
        target = folder / "diptych" / source.relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
    return folder / "diptych"


def requirements(model: Path) -> list[str]:
    """The distributions that the packaged modules import to load the folder `model`, pinned to the versions here."""
    owners = metadata.packages_distributions()
    names = {name.partition(".")[0] for path in imported_modules(ENTRY) for name in _imports(path)}
    outside = names - set(sys.stdlib_module_names) - {"diptych"} | _behind_transformers(model)
    # Several distributions may share a folder, such as mlflow and mlflow-skinny: the folder's own goes first.
    return [_pinned(owner) for owner in sorted({name if name in owners[name] else owners[name][0] for name in outside})]


def _behind_transformers(model: Path) -> set[str]:
    """What transformers imports for this model's towers alone."""
    description = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return {"timm"} if description["image_backbone"]["model_type"] == "timm_wrapper" else set()


def _pinned(distribution: str) -> str:
    # A local part such as +cpu names a build that package indexes do not have.
    return f"{distribution}=={metadata.version(distribution).partition('+')[0]}"


def _imports(path: Path) -> set[str]:
    """Absolute names that a file imports anywhere in it; `from a import b` gives a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names - {"__future__"}


def _files(name: str) -> list[Path]:
    """The file of a module of diptych, and the packages around it; nothing for names that are no such module."""
    package, *parts = name.split(".")
    if package != "diptych":
        return []
    path = PACKAGE.joinpath(*parts)
    module = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not module.is_file():
        return []
    around = [folder / "__init__.py" for folder in module.parents if folder.is_relative_to(PACKAGE)]
    return [module, *(file for file in around if file.is_file())]
