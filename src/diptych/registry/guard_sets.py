"""Guard sets: frozen images with captions, on which a challenger may not lose to the champion.

params.yaml pins the content of a set. A set is whole or refused: nothing is left out of it, so that all decisions are
made on the same queries.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diptych.config import GuardSet, Params, Splits
from diptych.data.accepted import Accepted, read_columns
from diptych.data.captions import CAPTIONS_FILE, Dataset, Record, check_ids, encodable, read_coco
from diptych.data.cores import worker_count
from diptych.errors import DiptychError, some
from diptych.project.dataset import folder_md5
from diptych.project.workspace import Workspace
from diptych.retriever import MAX_PIXELS
from diptych.validation.scan import scan_images

_FEWEST = 2
"""Smallest number of images of a set: one alone is ranked first by every model."""


class GuardGallery(NamedTuple):
    """The queries of a guard set."""

    name: str
    settings: GuardSet
    accepted: Accepted
    """Images and captions, all of them in the test split; their ids are their positions."""

    @property
    def image_of_caption(self) -> NDArray[np.int64]:
        """(M,), index of each caption's image."""
        return self.accepted.captions["image_id"].to_numpy()


def open_guard_sets(workspace: Workspace, params: Params) -> list[GuardGallery]:
    """Return the guard sets that params.yaml names; the validate stage has run.

    Raises:
        DiptychError: a set is missing, is not the pinned one, is not whole, has fewer than two images, or shares images
            with train or val.
    """
    galleries = []
    for name, settings in params.gate.guard_sets.items():
        try:
            folder = pinned_folder(workspace, settings.path, settings.md5)
            accepted = _read(folder, settings.split, params)
            _require_unlearned(accepted.images, workspace, params.data.splits)
        except DiptychError as error:
            raise DiptychError(f"params.yaml: gate.guard_sets.{name}: {error}") from None
        galleries.append(GuardGallery(name, settings, accepted))
    return galleries


def pinned_folder(workspace: Workspace, path: str, md5: str) -> Path:
    """Return the folder at `path` of the project, whose content has the hash `md5`.

    Raises:
        DiptychError: it is missing, or has another content.
    """
    folder, dvc_file = workspace.root / path, f"{path.rstrip('/')}.dvc"
    if not folder.is_dir():
        raise DiptychError(
            f"the folder {folder} is missing. `dvc checkout {dvc_file}` restores what DVC tracks, or `dvc pull` with a "
            "remote; to do without the set, remove it from params.yaml."
        )
    if (present := folder_md5(folder)) != md5:
        raise DiptychError(
            f"{folder} is not the pinned set: its hash is {present}, and md5 is {md5}. `dvc checkout --force "
            f"{dvc_file}` restores what DVC tracks; to guard what is there from now on, write its hash to md5."
        )
    return folder


def _read(folder: Path, split: str | None, params: Params) -> Accepted:
    """Return the images and captions of the set, each of which can be used."""
    dataset = read_coco(folder / CAPTIONS_FILE)
    records = [record for record in dataset.images if split in (None, record.get("split"))]
    if len(records) < _FEWEST:
        available = ", ".join(sorted({str(record.get("split")) for record in dataset.images})) or "none"
        of_split = f" in split {split!r} (available splits: {available})" if split else ""
        raise DiptychError(
            f"{folder} has {len(records)} images{of_split}. A comparison needs at least {_FEWEST}, and says more with "
            "hundreds. Correct path or split."
        )
    workers = worker_count(params.threads)
    images = scan_images(
        folder,
        [check_ids(folder, record) for record in records],
        max_pixels=MAX_PIXELS,
        workers=workers,
        others={record["file_name"] for record in dataset.images},
    )
    texts = _captions_by_image(dataset, records)
    if problems := _problems(images, texts):
        named = some(problems, separator="; ")
        raise DiptychError(
            f"{len(problems)} of the {len(images)} images in {folder} cannot be used: {named}. Correct them, or remove "
            f"them from {CAPTIONS_FILE}; then write the new hash to md5."
        )
    positions = np.arange(len(images))
    owners = np.repeat(positions, [len(captions) for captions in texts])
    flat = list(chain.from_iterable(texts))
    captions = pd.DataFrame({"caption_id": np.arange(len(flat)), "image_id": owners, "caption": flat})
    return Accepted(folder, images.assign(image_id=positions, split=params.data.splits.test), captions)


def _captions_by_image(dataset: Dataset, records: list[Record]) -> list[list[str]]:
    """Return the captions of each of the image records, as validation reads them."""
    texts: dict[int, list[str]] = {record["id"]: [] for record in records}
    for annotation in dataset.annotations:
        if annotation["image_id"] in texts:
            texts[annotation["image_id"]].append(encodable(annotation["caption"] or "").strip())
    return [texts[record["id"]] for record in records]


def _problems(images: pd.DataFrame, texts: list[list[str]]) -> list[str]:
    """Return what is wrong with each image that cannot be used."""
    repeated = images["image_id"].duplicated()
    rows = zip(images["source"], images["shard"], images["damage"], repeated, texts, strict=True)
    problems = []
    for source, shard, damage, is_repeated, captions in rows:
        if pd.isna(shard):
            problems.append(f"{source} (missing: the shards have no such member)")
        elif not pd.isna(damage):
            problems.append(f"{source} ({damage})")
        elif is_repeated:
            problems.append(f"{source} (its id is not unique)")
        elif not all(captions) or not captions:
            problems.append(f"{source} ({'a caption is empty' if captions else 'it has no caption'})")
    return problems


def _require_unlearned(images: pd.DataFrame, workspace: Workspace, splits: Splits) -> None:
    """Refuse images that models learn from or are chosen on."""
    known = read_columns(workspace.manifest, "split", "sha256", repair="Run `dvc repro validate`.")
    rows = zip(known["sha256"], known["split"], strict=True)
    split_of = {sha256: split for sha256, split in rows if split in (splits.train, splits.val)}
    shared = images[images["sha256"].isin(split_of)]
    if len(shared):
        first = shared.iloc[0]
        raise DiptychError(
            f"{len(shared)} of its {len(images)} images are in train or val of the dataset, such as {first['source']} "
            f"(in {split_of[first['sha256']]!r}). A model does not forget what it learns from: remove them from one of "
            "the two. `diptych data revert` undoes an import; a changed set needs its new hash in md5."
        )
