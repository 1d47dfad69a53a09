"""What the tags of a version say of its origin, before anything relies on it."""

from __future__ import annotations

import re
from typing import NamedTuple

from diptych.errors import DiptychError
from diptych.project.git import git_or_empty
from diptych.project.recording import BRANCH
from diptych.project.workspace import Workspace
from diptych.registry.registered_model import Version

_SHA256 = re.compile(r"[0-9a-f]{64}")
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
    """The commit that a version was made at, and the hashes of what it was made of and of what came out."""

    git_sha: str
    data_md5: str
    dvc_lock_sha256: str
    params_sha256: str
    weights_sha256: str
    model_sha256: str
    threads: int | None = None
    """CPU threads that computed it; None: not recorded."""


def origin_of(version: Version) -> Origin:
    """The tags, each of them a hash: whoever may write to the registry must not get a word into a command or a path.

    Raises:
        DiptychError: the version cannot be made again, or a tag is not what it should be; the message says why.
    """
    tags = version.tags
    reason = _printable(tags.get("not_reproducible", ""))
    if not reason and tags.get("git_dirty") != "false":
        reason = "made with uncommitted changes" if tags.get("git_dirty") == "true" else "made outside of git"
    if reason:
        raise DiptychError(f"{version.title} cannot be made again: {reason}.")
    for name, pattern in _PATTERNS.items():
        value = tags.get(name, "")
        if not pattern.fullmatch(value):
            raise DiptychError(
                f"{version.title} cannot be made again: its tag {name} is {_printable(value)!r}, which is no hash."
            )
    threads = tags.get("threads", "")
    return Origin(
        **{name: tags[name] for name in _PATTERNS}, threads=int(threads) if _THREADS.fullmatch(threads) else None
    )


def require_commit(workspace: Workspace, version: Version, commit: str) -> None:
    """Sees to it that the commit is in this repository.

    Raises:
        DiptychError: it is not.
    """
    if git_or_empty(workspace.root, "cat-file", "-t", commit) != "commit":
        raise DiptychError(
            f"{version.title} was made at commit {commit[:10]}, which this repository does not have: `git fetch`, or "
            f"`git fetch REMOTE {BRANCH}`, where REMOTE is what retrain.git_remote was when it was made."
        )


def _printable(text: str) -> str:
    """What a terminal shows as it is, and not too much of it."""
    return "".join(character for character in text if character.isprintable())[:300]
