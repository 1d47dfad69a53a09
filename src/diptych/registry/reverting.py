"""Return to an earlier dataset version, to undo a bad addition."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import yaml

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project.changing import changing
from diptych.project.dataset import fetch_dataset, switch_dataset
from diptych.project.git import GitError, git, git_bytes
from diptych.project.record import dataset_version
from diptych.project.workspace import Workspace

if TYPE_CHECKING:
    from diptych.registry.registered_model import Version


class Reversion(NamedTuple):
    """Dataset versions before and after, and the commit that records the latter."""

    before: str | None
    after: str
    commit: str


def revert_dataset(workspace: Workspace, commit: str) -> Reversion:
    """Return the project to the dataset that `commit` records; commits, results and the inbox stay as they are.

    The caller holds the workspace.

    Raises:
        DiptychError: there is no such commit, it records no dataset, data/ has changes that no version holds, or
            neither DVC's cache nor a remote has that version. The dataset is then as it was.
    """
    try:
        sha = git(workspace.root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    except GitError:
        raise DiptychError(f"git knows no commit {commit!r} here; `git fetch` fetches those of others.") from None
    try:
        recorded = git_bytes(workspace.root, "cat-file", "blob", f"{sha}:./data.dvc").decode("utf-8", errors="replace")
    except GitError:
        raise DiptychError(f"Commit {sha[:10]} records no dataset: it has no data.dvc.") from None
    if not _names_dataset(recorded):
        raise DiptychError(f"Commit {sha[:10]} records no dataset: its data.dvc is damaged.")
    if workspace.data.exists():
        fetch_dataset(workspace)
    before = dataset_version(workspace)
    with changing(workspace):
        switch_dataset(workspace, recorded)
    return Reversion(before, dataset_version(workspace) or "", sha)


def _names_dataset(recorded: str) -> bool:
    """Return whether `recorded` is a data.dvc that `dvc add data` wrote; a committed merge conflict is none."""
    try:
        (output,) = yaml.safe_load(recorded)["outs"]
        return output["path"] == "data" and isinstance(output["md5"], str)
    except (yaml.YAMLError, LookupError, TypeError, ValueError):
        return False


def find_commit(workspace: Workspace, params: Params, which: str) -> tuple[Version, str]:
    """Return the version with the number or alias `which`, and the commit that records its dataset.

    Raises:
        DiptychError: there is no such version, or its commit is not in this repository.
    """
    from diptych.registry.origin import origin_of
    from diptych.registry.registered_model import RegisteredModel

    version = RegisteredModel.of(workspace, params).find(which)
    return version, origin_of(version, workspace).git_sha
