"""Checkpoints of a training on disk, from which it goes on as if it had never been interrupted."""

from __future__ import annotations

import hashlib
import json
import logging
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from diptych.errors import DiptychError
from diptych.files import DIGEST_BYTES, atomic_path, digested, is_whole, remove
from diptych.model.gathering import rank

log = logging.getLogger(__name__)

_HAS_BEST = "has_best"
"""Key of the state: true if best weights were stored too, so that their loss is noticed before training goes on."""
_KEPT = 3
"""Number of interrupted trainings whose checkpoints stay when another training is discarded: the last ones."""


class Checkpoints:
    """The checkpoint of one training, and the best weights that it has seen.

    Args:
        folder: the folder of all trainings' checkpoints.
        identity: everything that the result depends on, as JSON; another training's checkpoint is never loaded.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = folder / self.key
        self._state = self.folder / "state.pt"
        self._best = self.folder / "best.safetensors"

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint by `state`, which may hold tensors, numbers, strings, lists and dicts."""
        with self._writing(), atomic_path(self._state) as temporary, digested(temporary) as file:
            torch.save({**state, _HAS_BEST: self._best.exists()}, file)

    def load(self) -> dict[str, Any] | None:
        """Return the checkpoint, on the CPU, or None where there is none; drop a damaged one with a warning."""
        if not self._state.exists():
            return None
        try:
            content = BytesIO(_read(self._state))
            state: dict[str, Any] = torch.load(content, map_location="cpu", weights_only=True)
            if state.pop(_HAS_BEST):
                self.load_best()
        except Exception as error:  # a damaged archive may raise anything
            log.warning("The checkpoint %s is damaged (%s); training starts from the beginning.", self.folder, error)
            if rank() == 0:
                self.discard()
            return None
        return state

    def save_best(self, weights: dict[str, Tensor]) -> None:
        """Replace the best weights."""
        with self._writing(), atomic_path(self._best) as temporary, digested(temporary) as file:
            file.write(save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}))

    def load_best(self) -> dict[str, Tensor]:
        """Return the best weights, on the CPU.

        Raises:
            DiptychError: they are missing or damaged.
        """
        try:
            return load(_read(self._best))
        except (OSError, ValueError) as error:
            raise DiptychError(f"{self._best} is lost ({error}); run again to train from the beginning.") from None

    def discard(self) -> None:
        """Remove this training's checkpoint, and those of trainings that were interrupted long ago."""
        remove(self.folder)
        # A folder changes with every file that is moved into place in it.
        others = sorted(self.folder.parent.glob("*"), key=lambda path: path.stat().st_mtime_ns)
        for path in others[:-_KEPT]:
            remove(path)

    def _writing(self) -> _DiskErrors:
        return _DiskErrors(self.folder)


def _read(path: Path) -> bytes:
    """Return the file's content, if all of it is what was written."""
    content = path.read_bytes()
    if not is_whole(memoryview(content)):
        raise ValueError(f"{path.name} has changed since it was written")
    return content[:-DIGEST_BYTES]


class _DiskErrors:
    """A context that turns errors of writing into one with the path; torch's and safetensors' do not name the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception):
            raise DiptychError(
                f"could not write the checkpoint in {self.folder}: {error}. The older one stays; free disk space, "
                "then run again to go on from there."
            ) from error
