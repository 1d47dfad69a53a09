"""The project's params.yaml: reading it, and putting a preset in its place without loss of edits."""

from __future__ import annotations

import hashlib
from pathlib import Path

from diptych.config import Params, load_params
from diptych.errors import DiptychError
from diptych.files import atomic_path
from diptych.project.git import GitError, git, refuse_conflict
from diptych.project.workspace import Workspace

_SEAL = "# From `diptych advise`, unedited while this is the SHA-256 of the rest: "


def read_params(workspace: Workspace) -> Params:
    """Return the settings in the project's params.yaml.

    Raises:
        DiptychError: the file holds a merge conflict, or it is refused as `load_params` says.
    """
    try:
        return load_params(workspace.params)
    except DiptychError:
        refuse_conflict(workspace.params)
        raise


def use_preset(workspace: Workspace, name: str) -> None:
    """Copy presets/NAME.yaml to params.yaml.

    Raises:
        DiptychError: there is no such preset, or it is refused, or params.yaml has edits that neither git nor a preset
            holds.
    """
    known = {path.stem: path.read_bytes() for path in sorted(workspace.presets.glob("*.yaml"))}
    if name not in known:
        raise DiptychError(f"There is no preset {name!r}; presets/ has {', '.join(known) or 'none'}.")
    if workspace.params.exists() and workspace.params.read_bytes() == known[name]:
        return
    refuse_lost_edits(workspace)
    # A preset that is refused replaces nothing.
    load_params(workspace.presets / f"{name}.yaml")
    with atomic_path(workspace.params) as temporary:
        temporary.write_bytes(known[name])


def sealed(text: str) -> str:
    """Return the settings `text` after a line with its SHA-256, by which a file without edits is known."""
    return f"{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def refuse_lost_edits(workspace: Workspace) -> None:
    """Refuse to replace a params.yaml whose edits would be lost.

    Raises:
        DiptychError: params.yaml is neither a preset, nor what was advised, nor committed; or it cannot be read.
    """
    try:
        present = workspace.params.read_bytes() if workspace.params.exists() else None
    except OSError as error:
        raise DiptychError(f"{workspace.params} cannot be read: {error.strerror}.") from None
    known = [path.read_bytes() for path in workspace.presets.glob("*.yaml") if path.is_file()]
    if present is None or present in known or _is_sealed(present) or _is_committed(workspace.params):
        return
    raise DiptychError(
        f"{workspace.params} has edits that would be lost. Commit them; or keep them as a preset of their own and "
        f"commit that (`cp params.yaml {workspace.presets.name}/mine.yaml`); or discard them "
        "(`git checkout params.yaml`)."
    )


def _is_sealed(content: bytes) -> bool:
    """Return whether `content` is what `sealed` returned."""
    seal, _, text = content.partition(b"\n")
    return seal.decode(errors="replace") == _SEAL + hashlib.sha256(text).hexdigest()


def _is_committed(path: Path) -> bool:
    """Return whether git's last commit has the file as it is."""
    try:
        return not git(path.parent, "status", "--porcelain", "--ignored", "--untracked-files=normal", "--", path.name)
    except GitError:
        return False
