"""Reader of the prepared dataset: pixels and token ids, mapped into memory, one split at a time.

The preprocess stage writes a folder with these files:
    settings.json    format, image_size, resize, decoding (SHA-256 of the decoding recipe), max_tokens,
                     vocabulary_size, pad_token_id
    images.parquet   image_id, split, sha256 of the file, shard (stem of its .npy), row, file_name, source; in the
                     order of the manifest
    images/*.npy     uint8 (n, S, S, 3); one file for each shard of the dataset; one that is not on this disk is read
                     from the store that has it
    captions.parquet caption_id, image_id, caption; grouped by image, in the order of the images
    tokens.npy       int32 (T,): the token ids of all captions, concatenated
    offsets.npy      int64 (captions + 1,): the index in tokens.npy at which each caption begins
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from diptych.config import Role, Splits
from diptych.data.accepted import read_columns, rows_of_role
from diptych.data.stored import find_stored
from diptych.data.stored_pixels import StoredPixels, Wanted, fill
from diptych.errors import DiptychError

FORMAT = 1
"""Version of the folder's format; raised whenever the same data would be written differently."""

TABLES = ("images.parquet", "captions.parquet", "settings.json")
"""Files of the folder that say which images and captions it has."""
_OF_IMAGES = ("image_id", "split", "sha256", "shard", "row", "source")
_OF_CAPTIONS = ("caption_id", "image_id", "caption")
"""Columns that are read."""
_REPAIR = "Run `dvc repro preprocess`."


class Prepared:
    """Prepared dataset in `folder`, whose splits are chosen by their role.

    Attributes:
        settings: the content of settings.json.

    Raises:
        DiptychError: the folder is missing, damaged, or of another format.
    """

    def __init__(self, folder: Path, splits: Splits) -> None:
        self.folder = folder
        self.settings = _read_settings(folder)
        self._splits = splits
        self._images = read_columns(folder / "images.parquet", *_OF_IMAGES, repair=_REPAIR)
        self._captions = read_columns(folder / "captions.parquet", *_OF_CAPTIONS, repair=_REPAIR)
        try:
            self._tokens = np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
            self._offsets = np.load(folder / "offsets.npy", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DiptychError(f"{folder} is incomplete or damaged ({error}). {_REPAIR}") from None
        if len(self._offsets) != len(self._captions["caption_id"]) + 1 or self._offsets[-1] != len(self._tokens):
            raise DiptychError(f"{folder} is damaged: token ids and captions do not match. {_REPAIR}")

    def split(self, role: Role) -> PreparedSplit:
        """Return the images and captions of the split that has `role`.

        Raises:
            DiptychError: that split has no images, or none of them has a caption.
        """
        part = self.part(rows_of_role(self._images["split"], self.image_hashes, self._splits, role))
        if len(part.captions) == 0:
            self._refuse(role)
        return part

    def part(self, rows: NDArray[np.int64]) -> PreparedSplit:
        """Return the images at `rows` (N,), ascending positions in the whole dataset, with their captions."""
        images = {name: values[rows] for name, values in self._images.items()}
        index = positions(self._captions["image_id"], images["image_id"])
        chosen = np.flatnonzero(index >= 0)
        return PreparedSplit(
            folder=self.folder / "images",
            images=images,
            captions={name: values[chosen] for name, values in self._captions.items()},
            image_of_caption=index[chosen],
            tokens=self._tokens,
            starts=self._offsets[chosen],
            lengths=self._offsets[chosen + 1] - self._offsets[chosen],
            settings=self.settings,
        )

    def rows_of(self, roles: Iterable[Role]) -> NDArray[np.int64]:
        """Return the positions in the whole dataset of the images of all splits with `roles`, ascending."""
        of_roles = [rows_of_role(self._images["split"], self.image_hashes, self._splits, role) for role in roles]
        return np.unique(np.concatenate(of_roles))

    @property
    def image_hashes(self) -> NDArray[Any]:
        """SHA-256 of each image's file, of the whole dataset."""
        return self._images["sha256"]

    def _refuse(self, role: Role) -> NoReturn:
        """Raise an error that says why the split that has `role` has no captioned images."""
        name = getattr(self._splits, role) or self._splits.train
        if self._splits.val is None and role != "test" and (self._images["split"] == name).any():
            raise DiptychError(
                f"data.splits.held_out ({self._splits.held_out}) leaves no captioned images of split {name!r} for "
                f"{role}. Correct it in params.yaml, or name a split in data.splits.val."
            )
        available = ", ".join(sorted(set(self._images["split"]))) or "none"
        raise DiptychError(
            f"{self.folder} has no captioned images in split {name!r}, which data.splits.{role} names "
            f"(available splits: {available}). Correct data.splits in params.yaml, then run `dvc repro preprocess`."
        )


class PreparedSplit:
    """Split with N images and M captions, which are grouped by image; its length is N.

    Attributes:
        image_ids: int64 (N,).
        sources: origin of each image (N), for messages and reports.
        caption_ids: int64 (M,).
        captions: texts (M).
        image_of_caption: int64 (M,), index of each caption's image in this split; non-decreasing.
        caption_ranges: int64 (N + 1,); image i has the captions caption_ranges[i]:caption_ranges[i + 1].
        token_lengths: int64 (M,), number of tokens of each caption, special tokens included.
        shard_of_image: int64 (N,), index of the pixel file that holds each image.
        image_hashes: SHA-256 of each image's file (N).
        decoding: SHA-256 of the recipe by which files became pixels.
    """

    def __init__(
        self,
        *,
        folder: Path,
        images: Mapping[str, NDArray[Any]],
        captions: Mapping[str, NDArray[Any]],
        image_of_caption: NDArray[np.int64],
        tokens: NDArray[np.int32],
        starts: NDArray[np.int64],
        lengths: NDArray[np.int64],
        settings: dict[str, Any],
    ) -> None:
        self.image_ids = images["image_id"].astype(np.int64)
        self.sources: list[str] = images["source"].tolist()
        self.caption_ids = captions["caption_id"].astype(np.int64)
        self.captions: list[str] = captions["caption"].tolist()
        self.image_of_caption = image_of_caption
        self.caption_ranges = np.searchsorted(image_of_caption, np.arange(len(self.image_ids) + 1)).astype(np.int64)
        self.token_lengths = lengths
        self._starts = starts
        self._tokens = tokens
        self._pad = int(settings["pad_token_id"])
        self._size = int(settings["image_size"])
        self._folder = folder
        self._shards: list[str] = list(dict.fromkeys(images["shard"]))
        numbers = {shard: number for number, shard in enumerate(self._shards)}
        self.shard_of_image = np.array([numbers[shard] for shard in images["shard"]], np.int64)
        self.image_hashes: list[str] = images["sha256"].tolist()
        self.decoding = str(settings["decoding"])
        self._rows = images["row"].astype(np.int64)
        self._maps: dict[int, NDArray[np.uint8] | StoredPixels] = {}

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs, without the pixels: it maps the same files."""
        return self.__dict__ | {"_maps": {}, "_folder": self._folder.absolute()}

    @property
    def tables(self) -> list[Path]:
        """Absolute paths of the files that say which images and captions these are."""
        folder = self._folder.absolute().parent
        return [folder / name for name in TABLES]

    def pixels(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the images at `indices` (B,): uint8 (B, S, S, 3), RGB.

        Raises:
            DiptychError: a pixel file is missing or damaged, or cannot be read from the store that has it.
        """
        indices = np.asarray(indices)
        batch = np.empty((len(indices), self._size, self._size, 3), np.uint8)
        shards, rows = self.shard_of_image[indices], self._rows[indices]
        elsewhere: list[Wanted] = []
        for shard in np.unique(shards):
            positions = np.flatnonzero(shards == shard)
            shard_rows = rows[positions]
            pixels = self._map(int(shard), int(shard_rows.max()))
            if isinstance(pixels, StoredPixels):
                elsewhere.append(Wanted(pixels, shard_rows, positions))
            else:
                batch[positions] = pixels[shard_rows]
        if elsewhere:
            fill(batch, elsewhere)
        return batch

    @property
    def is_stored_elsewhere(self) -> bool:
        """Whether pixels come from a store, so that reading them waits for a network."""
        return any(not self._path(shard).exists() for shard in range(len(self._shards)))

    def tokens(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the captions at `indices` (B,), padded to the longest of them.

        Returns:
            Token ids int64 (B, T) and mask bool (B, T), True for real tokens and False for padding.
        """
        indices = np.asarray(indices)
        lengths = self.token_lengths[indices]
        steps = np.arange(lengths.max(initial=0))
        mask = steps < lengths[:, None]
        positions = np.where(mask, self._starts[indices][:, None] + steps, 0)
        return np.where(mask, self._tokens[positions], self._pad).astype(np.int64), mask

    def _map(self, shard: int, last_row: int) -> NDArray[np.uint8] | StoredPixels:
        """Return the memory map of a pixel file, which is opened at its first use, or the file in the store."""
        if shard not in self._maps:
            self._maps[shard] = self._open(self._path(shard))
        pixels = self._maps[shard]
        if not isinstance(pixels, StoredPixels) and last_row >= len(pixels):
            raise DiptychError(f"{self._path(shard)} has no row {last_row}. {_REPAIR}")
        return pixels

    def _open(self, path: Path) -> NDArray[np.uint8] | StoredPixels:
        if not path.exists() and (stored := find_stored(path)):
            return StoredPixels(stored, self._size)
        try:
            pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DiptychError(f"{path} is missing or damaged ({error}). {_REPAIR}") from None
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (self._size, self._size, 3):
            raise DiptychError(f"{path} holds {pixels.dtype} {pixels.shape}, not images. {_REPAIR}")
        return pixels

    def _path(self, shard: int) -> Path:
        return self._folder / f"{self._shards[shard]}.npy"


def positions(ids: NDArray[np.int64], unique: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the position in `unique` (N,) of each of `ids` (M,); -1 for those that are not there."""
    order = np.argsort(unique)
    at = np.searchsorted(unique, ids, sorter=order)
    positions = np.append(order, -1)[at]
    return np.where(np.append(unique, -1)[positions] == ids, positions, -1)


def _read_settings(folder: Path) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DiptychError(f"{folder} holds no prepared data. {_REPAIR}") from None
    except ValueError as error:
        raise DiptychError(f"{folder / 'settings.json'} is damaged ({error}). {_REPAIR}") from None
    if not isinstance(settings, dict) or settings.get("format") != FORMAT:
        raise DiptychError(f"{folder} was written by another version of diptych. {_REPAIR}")
    return settings
