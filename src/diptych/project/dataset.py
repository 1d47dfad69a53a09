"""data/ as a version that data.dvc records: record it, fetch it, switch to another, go back.

A dataset that is missing comes from DVC's cache or a remote. The embedded scenes are drawn again where neither has
them: data.dvc notes their settings.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from diptych.data.stored import lost_files
from diptych.errors import DiptychError, some
from diptych.files import atomic_path, file_md5, remove
from diptych.project import dvc, pixels
from diptych.project.record import dataset_version, read_record
from diptych.project.workspace import Workspace

if TYPE_CHECKING:
    from diptych.data.captions import Dataset


def write_record(workspace: Workspace, content: dict[str, Any]) -> None:
    """Replace the content of data.dvc."""
    _write(workspace.root / "data.dvc", yaml.safe_dump(content, sort_keys=False))


def folder_md5(folder: Path) -> str:
    """Return the hash that DVC gives to a folder of these files, computed from their bytes."""
    entries = []
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_file():
            entries.append({"md5": file_md5(path), "relpath": path.relative_to(folder).as_posix()})
    return hashlib.md5(json.dumps(entries).encode(), usedforsecurity=False).hexdigest() + ".dir"


def uses_dvc(workspace: Workspace) -> bool:
    """Return whether the project versions its datasets with DVC."""
    return (workspace.root / ".dvc").is_dir()


def record_dataset(workspace: Workspace) -> None:
    """Make data/ as it is now the dataset version (`dvc add`); note the settings of scenes in data.dvc."""
    if not uses_dvc(workspace):
        return
    # Before `dvc add` as well: where DVC stages data.dvc for git, it stages what is there then.
    if read_record(workspace):
        note_scenes(workspace)
    dvc.call(workspace, "add", "data")
    note_scenes(workspace)


def keep_dataset(workspace: Workspace) -> None:
    """Make sure that DVC's cache has what is in data/ now, so that a change of it can be undone.

    Raises:
        DiptychError: DVC does not work here, data/ has changes that no version holds, or is a link.
    """
    if workspace.data.is_symlink():
        raise DiptychError(
            f"{workspace.data} is a link, and DVC versions no files behind links. Make it a folder of the project. "
            "What it links to can be DVC's cache instead: `dvc cache dir FOLDER`."
        )
    if not workspace.data.exists():
        # Nothing is to be kept; this finds a DVC that does not work before data/ changes.
        dvc.status(workspace, *(["data.dvc"] if read_record(workspace) else []))
    elif read_record(workspace):
        fetch_dataset(workspace)
    else:
        record_dataset(workspace)


def fetch_before_import(workspace: Workspace) -> None:
    """Fetch a recorded dataset that is missing, so that an import does not begin a new one; scenes may be replaced.

    Raises:
        DiptychError: neither DVC's cache nor a remote has it.
    """
    record = read_record(workspace)
    if not workspace.data.exists() and record and not _scene_settings(record):
        fetch_dataset(workspace)


def provide_dataset(workspace: Workspace) -> str:
    """Call `fetch_dataset`; where the images stay in the remote, fetch the tables that stages have made of them.

    Raises:
        DiptychError: as `fetch_dataset`, or there is no remote that could have the images.
    """
    if not pixels.lacks_images(workspace):
        return fetch_dataset(workspace)
    dvc.fetch_without_pixels(workspace)
    return "in the DVC remote"


def fetch_dataset(workspace: Workspace) -> str:
    """Make data/ what data.dvc records; return in a few words where it came from.

    A dataset that is missing comes from the cache, else from the remote. Embedded scenes that neither has are drawn
    again, and their hash is compared.

    Raises:
        DiptychError: data/ has changes that no version holds, or neither DVC's cache nor a remote has the version.
    """
    if not read_record(workspace):
        raise DiptychError("There is no dataset yet: run `diptych data import` or `diptych data scenes`.")
    missing = not workspace.data.exists()
    if not missing and (not dvc.status(workspace, "data.dvc") or _cache_if_recorded(workspace)):
        return "present"
    # A checkout removes what is there, also where it cannot bring what is recorded.
    reason = "" if missing else dvc.bring_into_cache(workspace, "data")
    if not reason and not (reason := dvc.failure(workspace, "checkout", "data.dvc")):
        return "taken from DVC's cache"
    if not missing:
        raise DiptychError(
            "data/ is not the version that data.dvc records. Run `dvc add data` to make it the new version, or "
            f"`dvc checkout --force data.dvc` to go back to the recorded one. DVC says: {reason}"
        )
    if dvc.remotes(workspace) and not (reason := dvc.failure(workspace, "pull", "data.dvc")):
        return "pulled from the DVC remote"
    _draw_again(workspace, reason)
    return "drawn: the embedded scenes"


def switch_dataset(workspace: Workspace, recorded: str) -> None:
    """Make `recorded` the content of data.dvc and fetch the dataset that it names; `changing` undoes a failure.

    Raises:
        DiptychError: neither the cache nor a remote has that version.
    """
    _write(workspace.root / "data.dvc", recorded)
    if pixels.lacks_images(workspace):
        _refuse_lost(workspace)
    elif reason := dvc.fetch(workspace, "data.dvc"):
        raise DiptychError(
            f"Neither DVC's cache nor a remote has dataset version {dataset_version(workspace)} (whole); data/ stays "
            f"as it is. `dvc remote list` shows where it was looked for. DVC says: {reason}"
        )


def _refuse_lost(workspace: Workspace) -> None:
    """Raise a DiptychError if the remote does not have the whole version that data.dvc records."""
    dvc.require_remote(workspace)
    try:
        lost = lost_files(workspace.data)
        reason = some([f"{file.path.name} ({file.key}) is not in {file.store.name}." for file in lost])
    except DiptychError as error:
        reason = str(error)
    if reason:
        version = dataset_version(workspace)
        raise DiptychError(f"Dataset version {version} cannot be used, and data.dvc stays as it was: {reason}")


def go_back(workspace: Workspace, recorded: str | None, lock: str | None, *, present: bool) -> None:
    """Give data.dvc and dvc.lock their former content, and data/ and the results of validate the former state.

    `recorded` and `lock` are those contents, None where there was no such file; `present`: whether data/ was there.

    Raises:
        DiptychError: DVC's cache does not have that version, or DVC does not work here.
    """
    _write(workspace.root / "data.dvc", recorded)
    _write(workspace.root / "dvc.lock", lock)
    if not present:
        remove(workspace.data)
    elif reason := dvc.failure(workspace, "checkout", "--force", "data.dvc"):
        raise DiptychError(
            f"data/ cannot go back to version {dataset_version(workspace)}: {reason}\nThe next command tries again; "
            "where DVC's cache does not have it (whole), fetch it with `dvc pull --force data.dvc` first."
        )
    if lock and "validate" in (yaml.safe_load(lock).get("stages") or {}):
        # The next run repeats validate where the cache lacks its results.
        dvc.failure(workspace, "checkout", "--force", "validate")


def _scene_settings(record: dict[str, Any]) -> dict[str, Any] | None:
    return (record.get("meta") or {}).get("scenes")


def note_scenes(workspace: Workspace) -> None:
    """Correct the `meta` of data.dvc: `dvc add` keeps the old one, whatever data/ has become."""
    from diptych.data.captions import read_dataset

    content = read_record(workspace)
    meta = _meta(read_dataset(workspace.data))
    if content.pop("meta", None) != meta:
        write_record(workspace, content | ({"meta": meta} if meta else {}))


def _meta(dataset: Dataset) -> dict[str, Any] | None:
    """Return the settings that scenes are drawn from; None for any other dataset."""
    from diptych.data.scenes.drawing import holds_scenes

    if not holds_scenes(dataset) or not dataset.images:
        return None
    counts = Counter(image["split"] for image in dataset.images)
    return {"scenes": {**counts, "seed": dataset.info["seed"], "size": dataset.images[0]["width"]}}


def _draw_again(workspace: Workspace, reason: str) -> None:
    """Draw the scenes that data.dvc names; keep them only if they are the recorded bytes.

    `reason` says why DVC could not fetch them.
    """
    scenes = _scene_settings(read_record(workspace))
    if not scenes:
        raise DiptychError(
            "data/ is missing, and neither DVC's cache nor a remote has the version that data.dvc records. Add the "
            "remote (`dvc remote list`), or begin a new dataset with `diptych data import --replace`. DVC says: "
            + reason
        )
    from diptych.data.scenes.drawing import write_scenes

    write_scenes(workspace.data, **scenes)
    if not _cache_if_recorded(workspace):
        remove(workspace.data)
        raise DiptychError(
            "The scenes drawn here are not those that data.dvc records; another version of the project drew them. Make "
            "them the dataset version with `diptych data scenes`."
        )


def _cache_if_recorded(workspace: Workspace) -> bool:
    """Return whether data/ is what data.dvc records; if so, the cache has it afterwards.

    Where the cache lacks the version, DVC's status ignores the files. A commit hashes them.
    """
    path = workspace.root / "data.dvc"
    before = path.read_bytes()
    if dvc.status(workspace, "data.dvc")["data.dvc"] != [{"changed outs": {"data": "not in cache"}}]:
        return False
    version = dataset_version(workspace)
    dvc.call(workspace, "commit", "--force", "data.dvc")
    same = dataset_version(workspace) == version
    if path.read_bytes() != before:
        path.write_bytes(before)
    return same


def _write(path: Path, content: str | None) -> None:
    """Replace the file in one step; None removes it."""
    if content is None:
        path.unlink(missing_ok=True)
    else:
        with atomic_path(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
