"""The project's params.yaml."""

from __future__ import annotations

from diptych.config import Params, load_params
from diptych.errors import DiptychError
from diptych.project.git import refuse_conflict
from diptych.project.workspace import Workspace


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
