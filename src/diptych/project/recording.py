"""Recording runs: a commit of what a run was made of, beside whatever is checked out, and copies of it elsewhere.

A run changes data.dvc, dvc.lock and params.yaml. Whoever wants the run again needs a commit that has them, but a run
that nobody watches has no business in somebody's branch. So the commits stand on a branch of their own, which only
ever grows, and are made without a look at HEAD's branch, the index or the working tree.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.project import dvc
from diptych.project.addresses import without_secrets
from diptych.project.git import GitError, changed_paths, converted_files, git, git_or_empty, head
from diptych.project.packages import foreign_code
from diptych.project.provenance import UNKNOWN, provenance
from diptych.project.workspace import Workspace

BRANCH = "diptych/runs"
"""Holds a commit for each run that HEAD alone does not describe."""
RECORDED = ("data.dvc", "dvc.lock", "params.yaml")
"""What a run changes, or is started with."""
WAITS = (1.0, 4.0)
"""Seconds before another attempt to reach a remote."""
STALE = 60.0
"""Seconds after which nobody stands behind a lock on the branch any more: git holds it for milliseconds."""

_REF = f"refs/heads/{BRANCH}"
_THEIRS = "refs/diptych/theirs"
_ATTEMPTS = 10
_NOBODY = {
    "GIT_AUTHOR_NAME": "diptych",
    "GIT_AUTHOR_EMAIL": "diptych@localhost",
    "GIT_COMMITTER_NAME": "diptych",
    "GIT_COMMITTER_EMAIL": "diptych@localhost",
}


class Recorded(NamedTuple):
    """The commit that a run was recorded as."""

    sha: str
    """40 digits, or "unknown"."""
    reproducible: bool
    """Whether the run can be made again from that commit."""
    why: str
    """Why not; empty where it can."""


def record_run(workspace: Workspace) -> Recorded:
    """A commit of HEAD's tree with data.dvc, dvc.lock and params.yaml as they are now, on the branch diptych/runs.

    Files whose line endings git converted in this working tree are in it as they are here, since these were what ran.
    Where HEAD has all as it is, it is HEAD; where the branch's last commit is this very tree upon HEAD, it is that
    one. A run that git cannot record is no failure: the answer says why it is not reproducible.
    """
    commit = UNKNOWN
    try:
        commit = head(workspace.root)
        changed = other_changes(workspace)
        tree = _write_tree(workspace, commit, changed)
        sha = commit if tree == _tree_of(workspace, commit) else _commit(workspace, commit, tree)
    except GitError as error:
        return Recorded(commit, False, f"git has no record of it ({error.reason})")
    return Recorded(sha, not changed, f"made with uncommitted changes of {_listed(changed)}" if changed else "")


def recorded_provenance(workspace: Workspace) -> dict[str, str]:
    """`provenance`, where git_sha is the commit that the run is recorded as; and, where the run cannot be made again
    from it, not_reproducible, which tells why.
    """
    run = record_run(workspace)
    if run.reproducible and (stages := _behind(workspace)):
        run = run._replace(reproducible=False, why=f"made by other code, data or parameters: {_listed(stages)} changed")
    if run.reproducible and (running := foreign_code(workspace.root)):
        run = run._replace(reproducible=False, why=f"made by the code in {running}, which is not the project's")
    tags = provenance(workspace) | {"git_sha": run.sha}
    if run.sha != UNKNOWN:
        tags["git_dirty"] = str(not run.reproducible).lower()
    return tags if run.reproducible else tags | {"not_reproducible": run.why}


def publish_run(workspace: Workspace, params: Params, on_line: Callable[[str], None]) -> list[str]:
    """Sends data and outputs to DVC's default remote, and the branch of the runs to retrain.git_remote, where there are
    such; returns what could not be done, a sentence each. What was sent by an earlier call is not sent again.
    """
    note = workspace.local / "published"
    state = _published_state(workspace, params)
    if note.exists() and note.read_text(encoding="utf-8") == state:
        return []
    problems = []
    if dvc.default_remote(workspace):
        said = _tried(lambda: dvc.push(workspace, on_line))
        problems += [f"the DVC remote was not reached: {said}; `dvc push` sends what is missing"] if said else []
    remote = params.retrain.git_remote
    if remote and _tip(workspace):
        said = _tried(lambda: _push(workspace, remote))
        again = f"`git push {without_secrets(remote)} {BRANCH}` sends what is missing"
        problems += [f"the git remote does not have the run: {said}; {again}"] if said else []
    if not problems:
        with atomic_path(note) as path:
            path.write_text(state, encoding="utf-8")
    return problems


def _published_state(workspace: Workspace, params: Params) -> str:
    """What there is to send, and where to, as a digest: asking DVC takes seconds, where all is sent already too."""
    digest = hashlib.sha256()
    for name in ("data.dvc", "dvc.lock", ".dvc/config", ".dvc/config.local"):
        path = workspace.root / name
        digest.update(hashlib.sha256(path.read_bytes() if path.exists() else b"").digest())
    remote = params.retrain.git_remote
    if remote:
        place = git_or_empty(workspace.root, "remote", "get-url", "--push", "--", remote)
        digest.update(json.dumps([_tip(workspace), remote, place]).encode())
    return digest.hexdigest()


def _write_tree(workspace: Workspace, head: str, changed: list[str]) -> str:
    """HEAD's tree with the recorded files as they are now, written by an index of its own."""
    prefix = git(workspace.root, "rev-parse", "--show-prefix")
    converted = {name: mode for name, mode in converted_files(workspace.root).items() if name not in changed}
    with tempfile.TemporaryDirectory() as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(workspace.root, "read-tree", head, environment=index)
        for name, mode in {**converted, **dict.fromkeys(RECORDED, "100644")}.items():
            if (workspace.root / name).is_file():
                # No filters: the tags of a version are hashes of these very bytes.
                blob = git(workspace.root, "hash-object", "-w", "--no-filters", "--", name)
                entry = f"{mode},{blob},{prefix}{name}"
                git(workspace.root, "update-index", "--add", "--cacheinfo", entry, environment=index)
            else:
                git(workspace.root, "update-index", "--force-remove", "--", name, environment=index)
        return git(workspace.root, "write-tree", environment=index)


def _commit(workspace: Workspace, head: str, tree: str) -> str:
    """The branch's new last commit, or the present one where it is this tree upon HEAD already."""
    if git_or_empty(workspace.root, "symbolic-ref", "--quiet", "HEAD") == _REF:
        raise GitError(f"the branch {BRANCH} is checked out here: `git switch` to another")
    _remove_stale_lock(workspace)
    for attempt in range(_ATTEMPTS):
        tip = _tip(workspace)
        if tip and _tree_of(workspace, tip) == tree and _contains(workspace, tip, head):
            return tip
        try:
            return _advance(workspace, tree, _parents(workspace, head, tip), tip, _message(workspace, head))
        except GitError:
            # Another run was recorded in between, most likely.
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.05 * attempt)
    raise AssertionError


def _remove_stale_lock(workspace: Workspace) -> None:
    """Of a git that was killed while it moved the branch: it would keep every later run from being recorded."""
    lock = workspace.root / git(workspace.root, "rev-parse", "--git-path", f"{_REF}.lock")
    with suppress(FileNotFoundError):
        if time.time() - lock.stat().st_mtime > STALE:
            lock.unlink()


def _advance(workspace: Workspace, tree: str, parents: list[str], tip: str, message: str) -> str:
    """Puts a commit on the branch, if its last commit is still `tip`; empty: if there is no branch yet."""
    options = [word for parent in parents for word in ("-p", parent)]
    commit = git(workspace.root, "commit-tree", tree, *options, "-m", message, environment=_identity(workspace))
    git(workspace.root, "update-ref", "--create-reflog", "-m", "diptych: a run", _REF, commit, tip)
    return commit


def _parents(workspace: Workspace, head: str, tip: str) -> list[str]:
    """HEAD and the branch's last commit, or the one of them that contains the other."""
    if not tip or _contains(workspace, head, tip):
        return [head]
    return [tip] if _contains(workspace, tip, head) else [head, tip]


def _message(workspace: Workspace, head: str) -> str:
    version = (dvc.dataset_version(workspace) or UNKNOWN)[:10]
    return f"A run at {head[:10]} with data {version}"


def other_changes(workspace: Workspace) -> list[str]:
    """Return the paths of the project, but for the recorded files, that differ from HEAD."""
    return changed_paths(workspace.root, *RECORDED)


def _behind(workspace: Workspace) -> list[str]:
    """Stages that would run now: what was made is not what this commit makes."""
    if not (workspace.root / ".dvc").is_dir():
        return []
    return sorted(dvc.status(workspace))


def _listed(paths: list[str], first: int = 3) -> str:
    more = f" and {len(paths) - first} more" if len(paths) > first else ""
    return ", ".join(paths[:first]) + more


def _push(workspace: Workspace, remote: str) -> None:
    """Sends the branch; where the remote has runs that are not here, together with those."""
    try:
        git(workspace.root, "push", "--quiet", "--", remote, f"{_REF}:{_REF}")
    except GitError:
        if not _join(workspace, remote):
            raise
        git(workspace.root, "push", "--quiet", "--", remote, f"{_REF}:{_REF}")


def _join(workspace: Workspace, remote: str) -> bool:
    """Has the branch contain the remote's runs too; whether there were any that it lacked."""
    try:
        git(workspace.root, "fetch", "--quiet", "--no-tags", "--", remote, f"+{_REF}:{_THEIRS}")
    except GitError:
        # What the push said is the better reason.
        return False
    ours, theirs = _tip(workspace), git(workspace.root, "rev-parse", "--verify", _THEIRS)
    if _contains(workspace, ours, theirs):
        return False
    tree = _tree_of(workspace, ours)
    _advance(workspace, tree, [ours, theirs], ours, f"Runs of this project and of {without_secrets(remote)}")
    return True


def _tried(send: Callable[[], None]) -> str:
    """Tries it a few times; returns what went wrong, empty where nothing did."""
    for wait in (*WAITS, None):
        try:
            send()
            return ""
        except (DiptychError, GitError) as error:
            if wait is None:
                return without_secrets(" ".join(str(error).split()))
            time.sleep(wait)
    raise AssertionError


def _tip(workspace: Workspace) -> str:
    """The branch's last commit; empty where there is no branch yet."""
    return git_or_empty(workspace.root, "rev-parse", "--verify", "--quiet", _REF)


def _tree_of(workspace: Workspace, commit: str) -> str:
    return git(workspace.root, "rev-parse", "--verify", f"{commit}^{{tree}}")


def _contains(workspace: Workspace, commit: str, other: str) -> bool:
    """Whether `other` is `commit`, or one of those before it."""
    try:
        git(workspace.root, "merge-base", "--is-ancestor", other, commit)
    except GitError:
        return False
    return True


def _identity(workspace: Workspace) -> dict[str, str]:
    """Nothing where git knows who the user is, else nobody in particular; git's own guess fails in containers."""
    known = all(
        git_or_empty(workspace.root, "-c", "user.useConfigOnly=true", "var", name)
        for name in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT")
    )
    return {} if known else {name: os.environ.get(name) or value for name, value in _NOBODY.items()}
