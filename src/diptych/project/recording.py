"""Records of runs: a commit of what each run was made of, on a branch of its own, and copies on remotes.

A run changes data.dvc, dvc.lock and params.yaml, and can be repeated only from a commit that has them. An unattended
run must not commit to the user's branch. So its commit goes to the branch diptych/runs, which only grows; HEAD, the
index and the working tree are not touched. `dvc exp show` lists the runs too (docs/decisions/recording-runs.md).
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
from diptych.errors import DiptychError, some
from diptych.files import atomic_path
from diptych.project import dvc
from diptych.project.addresses import without_secrets
from diptych.project.dataset import uses_dvc
from diptych.project.git import GitError, changed_paths, converted_files, git, git_or_empty, head_commit
from diptych.project.packages import foreign_code
from diptych.project.provenance import UNKNOWN, provenance
from diptych.project.record import dataset_version
from diptych.project.workspace import Workspace

BRANCH = "diptych/runs"
"""Branch with a commit for each run that HEAD alone does not describe."""
RECORDED = ("data.dvc", "dvc.lock", "params.yaml")
"""Files that a run changes, or is started with."""
WAITS = (1.0, 4.0)
"""Seconds before another attempt to reach a remote."""
STALE = 60.0
"""Age in seconds of a lock on the branch that a killed git left behind: a live one holds it for milliseconds."""

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
    problem: str
    """Reason why the run cannot be made again from that commit; empty where it can."""


def record_run(workspace: Workspace) -> Recorded:
    """Record HEAD's tree with the present data.dvc, dvc.lock and params.yaml as a commit on the branch diptych/runs.

    Files whose line endings git converted are recorded as they are in the working tree, because these bytes ran. Where
    HEAD has this tree, the record is HEAD; where the branch's last commit is this tree upon HEAD, it is that commit. A
    run that git cannot record is no failure: the result says why it is not reproducible.
    """
    commit = UNKNOWN
    try:
        commit = head_commit(workspace.root)
        changed = other_changes(workspace)
        tree = _write_tree(workspace, commit, changed)
        sha = commit if tree == _tree_of(workspace, commit) else _commit(workspace, commit, tree)
    except GitError as error:
        return Recorded(commit, f"git has no record of it ({error.reason})")
    if sha != commit:
        _list_as_experiment(workspace, commit, tree, sha)
    return Recorded(sha, f"made with uncommitted changes of {some(changed)}" if changed else "")


def recorded_provenance(workspace: Workspace) -> dict[str, str]:
    """Return the tags of `provenance`, with the run's recorded commit as git_sha.

    Where the run cannot be made again from that commit, git_dirty is "true" and the tag not_reproducible says why.
    Where git has no commit, git_sha is "unknown", and git_dirty is that of `provenance`.
    """
    sha, problem = record_run(workspace)
    # DVC would run these stages now: their results are not those of this commit.
    if not problem and uses_dvc(workspace) and (stages := sorted(dvc.status(workspace))):
        problem = f"made by other code, data or parameters: {some(stages)} changed"
    if not problem and (running := foreign_code(workspace.root)):
        problem = f"made by the code in {running}, which is not the project's"
    tags = provenance(workspace) | {"git_sha": sha}
    if sha != UNKNOWN:
        tags["git_dirty"] = str(bool(problem)).lower()
    return tags | ({"not_reproducible": problem} if problem else {})


def publish_run(workspace: Workspace, params: Params, on_line: Callable[[str], None]) -> list[str]:
    """Send data and outputs to DVC's default remote, and the branch of the runs to retrain.git_remote.

    A remote that is not set is left out. What an earlier call has sent is not sent again. Return a sentence for each
    remote that was not reached.
    """
    state = _published_state(workspace, params)
    if _last_published(workspace) == state:
        return []
    problems = []
    if dvc.default_remote(workspace):
        reason = _failure(lambda: dvc.push(workspace, on_line))
        problems += [f"the DVC remote was not reached: {reason}; `dvc push` sends what is missing"] if reason else []
    remote = params.retrain.git_remote
    if remote and _tip(workspace):
        reason = _failure(lambda: _push(workspace, remote))
        again = f"`git push {without_secrets(remote)} {BRANCH}` sends what is missing"
        problems += [f"the git remote does not have the run: {reason}; {again}"] if reason else []
    if not problems:
        with atomic_path(_published(workspace)) as path:
            path.write_text(state, encoding="utf-8")
    return problems


def is_published(workspace: Workspace, params: Params) -> bool:
    """Return whether `publish_run` has sent everything already."""
    return _last_published(workspace) == _published_state(workspace, params)


def other_changes(workspace: Workspace) -> list[str]:
    """Return the paths of the project that differ from HEAD, without the recorded files; else as `changed_paths`."""
    return changed_paths(workspace.root, *RECORDED)


def _last_published(workspace: Workspace) -> str | None:
    """Return the digest of what was sent last; None where nothing was."""
    note = _published(workspace)
    return note.read_text(encoding="utf-8") if note.exists() else None


def _published(workspace: Workspace) -> Path:
    return workspace.local / "published"


def _published_state(workspace: Workspace, params: Params) -> str:
    """Return a digest of what is to be sent and where to: asking DVC would take seconds, even with nothing to send."""
    digest = hashlib.sha256()
    for name in ("data.dvc", "dvc.lock", ".dvc/config", ".dvc/config.local"):
        path = workspace.root / name
        digest.update(hashlib.sha256(path.read_bytes() if path.exists() else b"").digest())
    remote = params.retrain.git_remote
    if remote:
        address = git_or_empty(workspace.root, "remote", "get-url", "--push", "--", remote)
        digest.update(json.dumps([_tip(workspace), remote, address]).encode())
    return digest.hexdigest()


def _write_tree(workspace: Workspace, head: str, changed: list[str]) -> str:
    """Write HEAD's tree with the present recorded files, by a temporary index; return its hash."""
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
    """Commit the tree to the branch, unless its last commit is this tree upon HEAD; return the last commit."""
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


def _list_as_experiment(workspace: Workspace, baseline: str, tree: str, sha: str) -> None:
    """Make `dvc exp show` list the run `sha` under its baseline, as run-SHA.

    DVC takes refs/exps/BASELINE/NAME for an experiment, and every commit between the two for a step of it. The run's
    commit follows the runs before it, so the reference gets a commit of the same tree upon the baseline alone. Without
    the reference the run is recorded all the same: a failure here is ignored.
    """
    ref = f"refs/exps/{baseline[:2]}/{baseline[2:]}/run-{sha[:10]}"
    if git_or_empty(workspace.root, "rev-parse", "--verify", "--quiet", ref):
        return
    with suppress(GitError):
        options = ("-p", baseline, "-m", _message(workspace, baseline))
        commit = git(workspace.root, "commit-tree", tree, *options, environment=_identity(workspace))
        git(workspace.root, "update-ref", ref, commit)


def _remove_stale_lock(workspace: Workspace) -> None:
    """Remove the lock of a git that was killed while it moved the branch: no later run could be recorded."""
    lock = workspace.root / git(workspace.root, "rev-parse", "--git-path", f"{_REF}.lock")
    with suppress(FileNotFoundError):
        if time.time() - lock.stat().st_mtime > STALE:
            lock.unlink()


def _advance(workspace: Workspace, tree: str, parents: list[str], tip: str, message: str) -> str:
    """Put a commit on the branch if its last commit is still `tip` (empty: if there is no branch yet)."""
    options = [word for parent in parents for word in ("-p", parent)]
    commit = git(workspace.root, "commit-tree", tree, *options, "-m", message, environment=_identity(workspace))
    git(workspace.root, "update-ref", "--create-reflog", "-m", "diptych: a run", _REF, commit, tip)
    return commit


def _parents(workspace: Workspace, head: str, tip: str) -> list[str]:
    """Return HEAD and the branch's last commit, or the one of them that contains the other."""
    if not tip or _contains(workspace, head, tip):
        return [head]
    return [tip] if _contains(workspace, tip, head) else [head, tip]


def _message(workspace: Workspace, head: str) -> str:
    version = (dataset_version(workspace) or UNKNOWN)[:10]
    return f"A run at {head[:10]} with data {version}"


def _push(workspace: Workspace, remote: str) -> None:
    """Push the branch; where the remote has runs that are not here, join them first."""
    try:
        git(workspace.root, "push", "--quiet", "--", remote, f"{_REF}:{_REF}")
    except GitError:
        if not _join(workspace, remote):
            raise
        git(workspace.root, "push", "--quiet", "--", remote, f"{_REF}:{_REF}")


def _join(workspace: Workspace, remote: str) -> bool:
    """Merge the remote's runs into the branch; return whether it lacked any."""
    try:
        git(workspace.root, "fetch", "--quiet", "--no-tags", "--", remote, f"+{_REF}:{_THEIRS}")
    except GitError:
        # The reason of the failed push says more.
        return False
    ours, theirs = _tip(workspace), git(workspace.root, "rev-parse", "--verify", _THEIRS)
    if _contains(workspace, ours, theirs):
        return False
    tree = _tree_of(workspace, ours)
    _advance(workspace, tree, [ours, theirs], ours, f"Runs of this project and of {without_secrets(remote)}")
    return True


def _failure(send: Callable[[], None]) -> str:
    """Try to send a few times; return the reason of the last failure, empty after a success."""
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
    """Return the branch's last commit; empty where there is no branch yet."""
    return git_or_empty(workspace.root, "rev-parse", "--verify", "--quiet", _REF)


def _tree_of(workspace: Workspace, commit: str) -> str:
    return git(workspace.root, "rev-parse", "--verify", f"{commit}^{{tree}}")


def _contains(workspace: Workspace, commit: str, other: str) -> bool:
    """Return whether `other` is `commit` or one of its ancestors."""
    return git_or_empty(workspace.root, "merge-base", other, commit) == other


def _identity(workspace: Workspace) -> dict[str, str]:
    """Return a neutral author for git's environment; empty where git knows the user.

    Git's own guess fails in containers.
    """
    known = all(
        git_or_empty(workspace.root, "-c", "user.useConfigOnly=true", "var", name)
        for name in ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT")
    )
    return {} if known else {name: os.environ.get(name) or value for name, value in _NOBODY.items()}
