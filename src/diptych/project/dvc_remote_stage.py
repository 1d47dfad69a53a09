"""`dvc repro --single-item` of a stage whose images DVC's remote has, and this disk does not.

DVC itself runs no stage whose dependencies are not on the disk. Here their hashes come from data.dvc and dvc.lock, and
those of outputs that were sent come from the stage's note.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.data.stored import LostError, lost_files
from diptych.errors import DiptychError
from diptych.project.dvc_remote import SENT
from diptych.project.pixels import PIXELS
from diptych.project.processes import die_with_parent

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage


def reproduce(root: Path, name: str, *, force: bool) -> bool:
    """Run a stage if it has changed, and record it in dvc.lock; return whether it ran.

    Raises:
        DiptychError: an output is neither on the disk nor was it sent.
        Exception: DVC's own errors.
    """
    from dvc.repo import Repo, lock_repo

    with Repo(str(root)) as repo, lock_repo(repo):
        [stage] = repo.stage.collect(name)
        if not (_take_versions(repo, stage) or force or _lacks_outputs(stage) or stage.changed(allow_missing=True)):
            print(f"Stage '{name}' didn't change, skipping")
            return False
        (root / SENT).unlink(missing_ok=True)
        # DVC's run cache takes no stage with dependencies that are not on the disk.
        stage.reproduce(force=True, allow_missing=True, no_commit=True)
        _take_sent(root, stage)
        stage.save(allow_missing=True, run_cache=False)
        stage.commit(allow_missing=True)
        stage.dump(update_pipeline=False)
        (root / SENT).unlink(missing_ok=True)
        return True


def _take_versions(repo: Repo, stage: PipelineStage) -> bool:
    """Let dependencies that are not on the disk be as the project records them; return whether one has changed."""
    outputs = {out.fs_path: out for out in repo.index.outs}
    changed = False
    for dependency in stage.deps:
        if not dependency.exists and (output := outputs.get(dependency.fs_path)):
            changed = changed or dependency.hash_info != output.hash_info
            dependency.hash_info, dependency.meta = output.hash_info, output.meta
    return changed


def _lacks_outputs(stage: PipelineStage) -> bool:
    """Return whether an output is neither on the disk nor, if it is one of pixels, in the remote."""
    missing = [out for out in stage.outs if not out.exists]
    if any(out.def_path not in PIXELS for out in missing):
        return True
    try:
        return any(lost_files(Path(out.fs_path)) for out in missing)
    except LostError:
        return True


def _take_sent(root: Path, stage: PipelineStage) -> None:
    """Let outputs that are not on the disk be what the stage has noted of those that it sent."""
    from dvc_data.hashfile.hash_info import HashInfo
    from dvc_data.hashfile.meta import Meta

    note = root / SENT
    sent = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
    for out in stage.outs:
        if out.exists:
            continue
        if not (facts := sent.get(out.def_path)):
            raise DiptychError(f"The stage has neither written {out.def_path} nor sent it to the DVC remote.")
        out.hash_info = HashInfo("md5", facts["md5"])
        out.meta = Meta(size=facts["size"], nfiles=facts["nfiles"], isdir=True)


def main() -> None:
    """Reproduce the stage NAME of the project in the current folder: `dvc_remote_stage.py NAME [--force]`.

    The process ends when its parent ends.
    """
    die_with_parent()
    from dvc.exceptions import DvcException

    name, *options = sys.argv[1:]
    try:
        reproduce(Path.cwd(), name, force="--force" in options)
    except (DiptychError, DvcException) as error:
        print(f"ERROR: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
