"""An earlier commit of the project in a temporary folder, with DVC's cache and remotes, and nothing else, in common."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from diptych.errors import DiptychError
from diptych.files import remove
from diptych.project.git import GitError, converted_files, git, git_bytes, git_or_empty
from diptych.project.workspace import Workspace

_KEPT = "kept"
"""Name of a file that marks the folder of a checkout which the user wants to keep."""


@contextmanager
def checked_out(workspace: Workspace, commit: str, title: str, *, keep: bool = False) -> Iterator[Workspace]:
    """Check out the project at `commit` in .diptych/reproductions/ until the block ends; for good, if `keep`.

    The project itself stays as it is, and several commits may be checked out at once. Leftovers of killed processes are
    removed first.

    Raises:
        DiptychError: git cannot check it out, most likely because the disk is full.
    """
    home = workspace.local / "reproductions"
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "lock"):
        _remove_leftovers(workspace, home)
        folder = Path(tempfile.mkdtemp(prefix=f"{title}-", dir=home))
        using = _lock(folder)
        using.acquire()
    try:
        if keep:
            (folder / _KEPT).touch()
        yield _check_out(workspace, commit, folder / "project")
    finally:
        if not keep:
            _remove(workspace, folder)
        using.release()


def _check_out(workspace: Workspace, commit: str, root: Path) -> Workspace:
    try:
        prefix = git(workspace.root, "rev-parse", "--show-prefix")
        # No hooks: the hook of DVC would fetch all outputs.
        options = ("-c", "core.hooksPath=/dev/null", "worktree", "add", "--quiet", "--detach")
        git(workspace.root, *options, str(root), commit)
        _undo_conversion(root)
    except GitError as error:
        raise DiptychError(f"git could not check out {commit[:10]} in {root}: {error}.") from None
    project = Workspace(root / prefix)
    _share_dvc(workspace, project)
    _link_towers(workspace, project)
    return project


def _undo_conversion(root: Path) -> None:
    """Give every file the exact bytes of the commit, which the tags hash: git may have converted line endings."""
    for name in converted_files(root):
        (root / name).write_bytes(git_bytes(root, "cat-file", "blob", f":./{name}"))


def _share_dvc(workspace: Workspace, project: Workspace) -> None:
    """Configure the cache and the remotes of the workspace, with paths that are valid in `project` too."""
    from dvc.config import Config

    settings = Config(str(workspace.root / ".dvc")).load_config_to_level()
    settings["cache"].setdefault("dir", str(workspace.root / ".dvc" / "cache"))
    # DVC's records of the files are removed together with the folder.
    settings["core"]["site_cache_dir"] = str(project.root / ".dvc" / "tmp" / "site")
    (project.root / ".dvc").mkdir(exist_ok=True)
    _write_settings(project.root / ".dvc" / "config.local", settings)


def _write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Write a configuration file of DVC in UTF-8: DVC itself writes ASCII, which holds no path with an umlaut."""
    from configobj import ConfigObj

    content = ConfigObj(encoding="utf-8", interpolation=False)
    for section, values in settings.items():
        content[section] = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
        for name, named in values.items():
            if isinstance(named, Mapping):
                content[f'{section} "{name}"'] = dict(named)
    # It may hold passwords.
    path.touch(mode=0o600)
    with path.open("wb") as file:
        content.write(file)


def _link_towers(workspace: Workspace, project: Workspace) -> None:
    """Link the folders of pretrained towers, which git does not have, into `project`."""
    for folder in _tower_folders(project):
        here, there = workspace.root / folder, project.root / folder
        if here.is_dir() and not there.exists() and there.resolve().is_relative_to(project.root.resolve()):
            there.parent.mkdir(parents=True, exist_ok=True)
            there.symlink_to(here.resolve())


def _tower_folders(project: Workspace) -> list[str]:
    """Return the folders in the project's params.yaml, which another version of diptych may have written."""
    try:
        model: Any = yaml.safe_load(project.params.read_text(encoding="utf-8"))["model"]
        names = [model.get(tower, {}).get("pretrained") for tower in ("image_tower", "text_tower")]
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return []
    return [name for name in names if isinstance(name, str) and name.startswith(".")]


def _remove_leftovers(workspace: Workspace, home: Path) -> None:
    """Remove the folders that no process uses, except kept ones that still hold a project."""
    for folder in [path for path in home.iterdir() if path.is_dir()]:
        if (folder / _KEPT).exists() and (folder / "project").exists():
            continue
        using = _lock(folder)
        try:
            using.acquire(timeout=0)
        except Timeout:
            continue
        _remove(workspace, folder)
        using.release()
    for lock in home.glob("*.lock"):
        if not lock.with_suffix("").exists():
            lock.unlink(missing_ok=True)


def _remove(workspace: Workspace, folder: Path) -> None:
    # `git worktree prune` would also remove worktrees of the user on a disk that is not mounted now.
    git_or_empty(workspace.root, "worktree", "remove", "--force", "--force", str(folder / "project"))
    remove(folder)


def _lock(folder: Path) -> FileLock:
    return FileLock(folder.with_name(f"{folder.name}.lock"))
