"""Origin of a version, read from its tags and checked before anything relies on it."""

from __future__ import annotations

import re
from typing import NamedTuple

from diptych.errors import DiptychError, printable
from diptych.project.git import git_or_empty
from diptych.project.recording import BRANCH
from diptych.project.workspace import Workspace
from diptych.registry.registered_model import Version

_SHA256 = re.compile(r"[0-9a-f]{64}")
_LONGEST = 300
"""Characters of a tag that a message shows."""
_THREADS = re.compile(r"[1-9][0-9]{0,3}")
_PATTERNS = {
    "git_sha": re.compile(r"[0-9a-f]{40}"),
    "data_md5": re.compile(r"[0-9a-f]{32}(\.dir)?"),
    "dvc_lock_sha256": _SHA256,
    "params_sha256": _SHA256,
    "weights_sha256": _SHA256,
    "model_sha256": _SHA256,
}


class Origin(NamedTuple):
    """The commit that a version was made at, and the hashes of its inputs and outputs."""

    git_sha: str
    data_md5: str
    dvc_lock_sha256: str
    params_sha256: str
    weights_sha256: str
    model_sha256: str
    threads: int | None = None
    """Number of CPU threads that computed it; None where it is not recorded."""


def origin_of(version: Version, workspace: Workspace) -> Origin:
    """Return the origin in the tags of `version`, after a check of all hashes and of the commit.

    Whoever may write to the registry must not get text into a command or a path.

    Raises:
        DiptychError: the version cannot be made again, or a tag is malformed; the message says why.
    """
    tags = version.tags
    reason = printable(tags.get("not_reproducible", ""))[:_LONGEST]
    if not reason and tags.get("git_dirty") != "false":
        reason = "made with uncommitted changes" if tags.get("git_dirty") == "true" else "made outside of git"
    if reason:
        raise DiptychError(f"{version.title} cannot be made again: {reason}.")
    for name, pattern in _PATTERNS.items():
        value = tags.get(name, "")
        if not pattern.fullmatch(value):
            shown = printable(value)[:_LONGEST]
            raise DiptychError(f"{version.title} cannot be made again: its tag {name} is {shown!r}, which is no hash.")
    _require_commit(workspace, version.title, tags["git_sha"])
    threads = tags.get("threads", "")
    return Origin(
        **{name: tags[name] for name in _PATTERNS}, threads=int(threads) if _THREADS.fullmatch(threads) else None
    )


def _require_commit(workspace: Workspace, title: str, commit: str) -> None:
    if git_or_empty(workspace.root, "cat-file", "-t", commit) != "commit":
        raise DiptychError(
            f"{title} was made at commit {commit[:10]}, which this repository does not have: `git fetch`, or "
            f"`git fetch REMOTE {BRANCH}`, where REMOTE is what retrain.git_remote was when it was made."
        )
