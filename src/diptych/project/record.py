"""What data.dvc records of the dataset."""

from __future__ import annotations

from typing import Any

import yaml

from diptych.errors import DiptychError
from diptych.project.git import how_to_restore, refuse_conflict
from diptych.project.workspace import Workspace


def read_record(workspace: Workspace) -> dict[str, Any]:
    """Return the content of data.dvc; empty where there is no such file.

    Raises:
        DiptychError: the file is damaged or holds a merge conflict.
    """
    dvc_file = workspace.root / "data.dvc"
    try:
        content: dict[str, Any] = yaml.safe_load(dvc_file.read_text(encoding="utf-8"))
        content["outs"][0].get("md5")
        return content
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError) as error:
        refuse_conflict(dvc_file)
        raise DiptychError(f"{dvc_file} is damaged ({error}). {how_to_restore(dvc_file)}") from None


def dataset_version(workspace: Workspace) -> str | None:
    """Return the hash that data.dvc records; None where there is none."""
    record = read_record(workspace)
    return record["outs"][0].get("md5") if record else None
