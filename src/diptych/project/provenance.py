"""Provenance of a model: the tags of every MLflow run and model version."""

from __future__ import annotations

import hashlib
from pathlib import Path

from diptych.files import file_sha256
from diptych.project.git import GitError, changed_paths, git_or_empty
from diptych.project.record import dataset_version
from diptych.project.workspace import Workspace

UNKNOWN = "unknown"
"""Value of a tag for a fact that the project does not have, such as a commit outside of git."""


def provenance(workspace: Workspace) -> dict[str, str]:
    """Return git_sha, git_dirty, data_md5, dvc_lock_sha256 and params_sha256, and the digests of the model.

    They are weights_sha256, and model_sha256, which covers its configuration and tokenizer as well. Without a model
    both are left out.
    """
    tags = {
        "git_sha": git_sha(workspace.root),
        "git_dirty": git_dirty(workspace.root),
        "data_md5": dataset_version(workspace) or UNKNOWN,
        "dvc_lock_sha256": _sha256(workspace.root / "dvc.lock") or UNKNOWN,
        "params_sha256": _sha256(workspace.params) or UNKNOWN,
    }
    return tags | model_digests(workspace.model)


def model_digests(model: Path) -> dict[str, str]:
    """Return weights_sha256 and model_sha256 of a model's folder; empty where it has no weights."""
    weights = _sha256(model / "model.safetensors")
    return {"weights_sha256": weights, "model_sha256": folder_sha256(model)} if weights else {}


def git_sha(root: Path) -> str:
    """Return the commit that is checked out, 40 digits; "unknown" without git, or where git refuses."""
    return git_or_empty(root, "rev-parse", "--verify", "--quiet", "HEAD") or UNKNOWN


def git_dirty(root: Path) -> str:
    """Return "true" where the project differs from its commit, "false" where it does not, else "unknown".

    dvc.lock does not count: a run writes it, and its content has a tag of its own.
    """
    try:
        return str(bool(changed_paths(root, "dvc.lock"))).lower()
    except GitError:
        return UNKNOWN


def folder_sha256(folder: Path) -> str:
    """Return the SHA-256 of the names and contents of all files in the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = "\n".join(f"{path.relative_to(folder).as_posix()} {file_sha256(path)}" for path in files)
    return hashlib.sha256(listed.encode()).hexdigest()


def _sha256(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None
