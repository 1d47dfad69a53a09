"""Presets as params.yaml, without loss of edits."""

from __future__ import annotations

from pathlib import Path

from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.project.git import GitError, git
from diptych.project.workspace import Workspace


def use_preset(workspace: Workspace, name: str) -> None:
    """Copy presets/NAME.yaml to params.yaml.

    Raises:
        DiptychError: there is no such preset, or params.yaml has edits that neither git nor a preset holds.
    """
    known = {path.stem: path for path in sorted(workspace.presets.glob("*.yaml"))}
    if name not in known:
        raise DiptychError(f"There is no preset {name!r}; presets/ has {', '.join(known) or 'none'}.")
    content = known[name].read_bytes()
    present = workspace.params.read_bytes() if workspace.params.exists() else content
    if present == content and workspace.params.exists():
        return
    if present not in [path.read_bytes() for path in known.values()] and not _is_committed(workspace.params):
        raise DiptychError(
            f"{workspace.params} has edits that would be lost. Commit them, or keep them as a preset of their own: "
            f"`cp params.yaml {workspace.presets.name}/mine.yaml`."
        )
    with atomic_path(workspace.params) as temporary:
        temporary.write_bytes(content)


def _is_committed(path: Path) -> bool:
    """Return whether git's last commit has the file as it is."""
    try:
        return not git(path.parent, "status", "--porcelain", "--ignored", "--untracked-files=normal", "--", path.name)
    except GitError:
        return False
