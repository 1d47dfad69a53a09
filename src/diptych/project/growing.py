"""Growth of the dataset: what is imported becomes part of the next version.

Where the images stay in the remote, data/ holds only what is new for a while, and DVC adds that to the version before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from diptych.data.captions import CAPTIONS_FILE
from diptych.data.stored import copied, known_file
from diptych.files import remove
from diptych.project import dvc
from diptych.project.dataset import fetch_before_import, note_scenes, record_dataset, write_record
from diptych.project.pixels import lacks_images
from diptych.project.record import read_record
from diptych.project.workspace import Workspace


@contextmanager
def growing(workspace: Workspace, *, anew: bool = False) -> Iterator[Callable[[], None]]:
    """Let the block import into data/; yield a function, for the block, that makes the result the dataset version.

    A recorded dataset that is missing is fetched first, so that the import does not begin a new one; scenes may be
    replaced. Where the images stay in the remote, only the captions are fetched, and data/ goes when the block ends.

    Args:
        workspace: the project; the caller holds it.
        anew: whether the import begins a new dataset, whatever was there.

    Raises:
        DiptychError: neither DVC's cache nor a remote has the dataset, or it is to stay in a remote and there is none.
    """
    if anew or not read_record(workspace) or not lacks_images(workspace):
        if not anew:
            fetch_before_import(workspace)
        yield partial(record_dataset, workspace)
        return
    dvc.require_remote(workspace)
    captions = workspace.data / CAPTIONS_FILE
    copy = copied(known_file(captions))
    workspace.data.mkdir()
    try:
        shutil.copyfile(copy, captions)
        yield partial(_record_addition, workspace, copy.stat().st_size)
    finally:
        remove(workspace.data)


def _record_addition(workspace: Workspace, replaced: int) -> None:
    """Add the files in data/ to the recorded version, and send them to the remote; `replaced` bytes leave it."""
    size = read_record(workspace)["outs"][0].get("size")
    added = sorted(path for path in workspace.data.iterdir() if path.is_file())
    # Before `dvc add` as well: where DVC stages data.dvc for git, it stages what is there then.
    note_scenes(workspace)
    dvc.call(workspace, "add", *(str(path.relative_to(workspace.root)) for path in added))
    if size is not None:
        # DVC leaves out the number of bytes where it has added to a version.
        record = read_record(workspace)
        total = size - replaced + sum(path.stat().st_size for path in added)
        [output] = record["outs"]
        write_record(workspace, {**record, "outs": [{"md5": output.pop("md5"), "size": total, **output}]})
    note_scenes(workspace)
    dvc.call(workspace, "push", "data.dvc")
