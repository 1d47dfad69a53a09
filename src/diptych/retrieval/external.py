"""Galleries of embeddings that any model made, read from files to be evaluated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.data.captions import Dataset, Record, read_coco
from diptych.data.images import ImageError, open_image
from diptych.data.images_folder import ImagesFolder
from diptych.data.sources import coco_candidates, refuse_repeated, refuse_unlisted
from diptych.errors import DiptychError, some

MAX_PIXELS = 100_000_000
"""Largest number of pixels of an image that is shown."""


class ExternalGallery:
    """The N images and M captions of a COCO captions file, in its order.

    Attributes:
        captions: the texts (M).
        image_of_caption: int64 (M,), each caption's image.
        image_ids: ids of the images (N,), as in the file.
        caption_ids: ids of the captions (M,), as in the file.

    Args:
        path: the captions file.
        images: the folder of the images, if they are to be shown.
        links_within: a second folder that links among the images may lead into.

    Raises:
        DiptychError: the file is not COCO captions or contradicts itself; an image has no caption or, where a folder
            is given, no file.
    """

    def __init__(self, path: Path, images: Path | None = None, links_within: Path | None = None) -> None:
        listed = read_coco(path)
        refuse_repeated(path, "image id", (record["id"] for record in listed.images))
        refuse_unlisted(path, listed)
        if not listed.images:
            raise DiptychError(f"{path} lists no images.")
        _refuse_without_captions(path, listed)
        index = {record["id"]: number for number, record in enumerate(listed.images)}
        self.path = path
        self.captions = [record["caption"] or "" for record in listed.annotations]
        self.image_of_caption = np.array([index[record["image_id"]] for record in listed.annotations], np.int64)
        self.image_ids = np.array([record["id"] for record in listed.images])
        self.caption_ids = np.array([record["id"] for record in listed.annotations])
        self._files = _find_files(path, listed.images, ImagesFolder(images, links_within)) if images else None

    def __len__(self) -> int:
        return len(self.image_ids)

    def pixels(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return RGB of the image at the one index in `indices` (1,), uint8 (1, H, W, 3).

        Raises:
            DiptychError: the file is no image.
        """
        assert self._files is not None
        path = self._files[int(indices[0])]
        try:
            image = open_image(path.read_bytes(), MAX_PIXELS)
        except (OSError, ImageError) as error:
            raise DiptychError(f"{path} cannot be shown: {error}.") from None
        return np.asarray(image)[None]

    def read_embeddings(self, image_path: Path, text_path: Path) -> tuple[Tensor, Tensor]:
        """Read the embeddings of the images (N, d) and of the captions (M, d) from two .npy files.

        Raises:
            DiptychError: a file holds no matrix of floating numbers, or another number of rows than the gallery has;
                or both have different numbers of columns.
        """
        image = self._read(image_path, len(self), "images")
        text = self._read(text_path, len(self.captions), "captions")
        if image.shape[1] != text.shape[1]:
            raise DiptychError(
                f"{image_path} has {image.shape[1]} dimensions and {text_path} {text.shape[1]}: both must have the "
                "same number, as embeddings of one model have."
            )
        return image, text

    def _read(self, path: Path, expected: int, items: str) -> Tensor:
        try:
            rows = np.load(path, allow_pickle=False)
        except OSError as error:
            raise DiptychError(f"{path} cannot be read: {error.strerror or error}.") from None
        except Exception as error:  # numpy fails in many ways on other files
            # numpy's own message explains how to unpickle them.
            raise DiptychError(f"{path} is no .npy file of numbers; write it with numpy.save.") from error
        if not isinstance(rows, np.ndarray) or rows.ndim != 2 or rows.dtype.kind != "f" or rows.itemsize > 8:
            shape = f"{rows.dtype} {rows.shape}" if isinstance(rows, np.ndarray) else "an archive"
            raise DiptychError(f"{path} must hold one matrix of float16 or float32, an embedding a row, not {shape}.")
        if len(rows) != expected:
            raise DiptychError(
                f"{path} has {len(rows):,} rows, but {self.path} lists {expected:,} {items}; row i must belong to the "
                "i-th of these."
            )
        return torch.from_numpy(rows.astype(rows.dtype.newbyteorder("="), copy=False))


def _refuse_without_captions(path: Path, listed: Dataset) -> None:
    captioned = {record["image_id"] for record in listed.annotations}
    without = [f"{record['id']} ({record['file_name']})" for record in listed.images if record["id"] not in captioned]
    if without:
        raise DiptychError(
            f"{path}: images without captions, for which nothing can be relevant: {some(without)}. Leave them and "
            "their embeddings out."
        )


def _find_files(path: Path, records: list[Record], folder: ImagesFolder) -> list[Path]:
    files = [folder.find(coco_candidates(record), f"{path}: image {record['id']}") for record in records]
    folder.refuse_missing(path, len(records), "Check the images folder, or leave --images out.")
    return files
