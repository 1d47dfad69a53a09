"""Shards of prepared images: which images they hold, their names, and how their files are filled."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import PIL
from PIL import Image

from diptych.config import Preprocess
from diptych.data import image_metadata, images
from diptych.data.images import ImageError, open_image, to_pixels
from diptych.data.parallel import batch_size
from diptych.data.prepared import FORMAT
from diptych.data.shards import Member, members_of, read_members
from diptych.errors import DiptychError
from diptych.files import file_sha256


@dataclass(frozen=True)
class Batch:
    """Batch of images of one shard; its pixels are written to the file `output` from the byte `start`."""

    shard: str
    members: list[Member]
    sha256: list[str]
    output: Path
    start: int


@dataclass(frozen=True, eq=False)
class PreparedShard:
    """Accepted images of one shard of the dataset, as rows of the manifest, and the file for their pixels."""

    stem: str
    rows: pd.DataFrame
    shape: tuple[int, int, int, int]
    path: Path
    """The file with the pixels when it is complete."""

    @property
    def recipe(self) -> str:
        """SHA-256 of all that the pixels depend on, which is the name of the file."""
        return self.path.stem

    @property
    def temporary(self) -> Path:
        """The file while it is filled."""
        return self.path.with_name(f".{self.path.name}.tmp")

    @property
    def starts(self) -> range:
        """Rows at which the batches start."""
        return range(0, len(self.rows), batch_size())

    @property
    def header(self) -> bytes:
        """The header of the .npy file."""
        content = BytesIO()
        description = {"descr": np.dtype(np.uint8).str, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(content, description)
        return content.getvalue()

    @property
    def file_size(self) -> int:
        """Number of bytes of the file."""
        return len(self.header) + math.prod(self.shape)


def plan(manifest: pd.DataFrame, settings: Preprocess, folder: Path) -> list[PreparedShard]:
    """Return the shards of the images of `manifest`, in its order, with their files in `folder`."""
    side = settings.image_size
    columns = ["shard", "file_name", "offset", "bytes", "sha256"]
    steps = decoding(settings)
    return [
        PreparedShard(
            name.removesuffix(".tar"),
            rows,
            (len(rows), side, side, 3),
            folder / f"{recipe_of(steps, rows['sha256'].tolist())}.npy",
        )
        for name, rows in manifest[columns].groupby("shard", sort=False)
    ]


def recipe_of(steps: str, sha256: Sequence[str]) -> str:
    """Return the recipe of the shard of these images, whose pixels are made by `steps`, a result of `decoding`."""
    return hashlib.sha256(json.dumps([steps, sha256]).encode()).hexdigest()


def decoding(settings: Preprocess) -> str:
    """Return the SHA-256 of the recipe by which files become pixels, including the code."""
    code = [file_sha256(Path(inspect.getfile(module))) for module in (images, image_metadata)]
    recipe = [FORMAT, settings.image_size, settings.resize, PIL.__version__, code]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()


def most_pixels(manifest: pd.DataFrame) -> int:
    """Return the number of pixels of the largest image that was validated; a larger one has been replaced since."""
    return int((manifest["width"].astype(np.int64) * manifest["height"]).max())


def write_images_table(manifest: pd.DataFrame, output: Path) -> None:
    """Write `output`/images.parquet: where the pixels of each image of `manifest` are, in its order."""
    table = manifest[["image_id", "split", "sha256"]].assign(
        shard=manifest["shard"].str.removesuffix(".tar"),
        row=manifest.groupby("shard").cumcount().astype(np.int32),
        file_name=manifest["file_name"],
        source=manifest["source"],
    )
    table.to_parquet(output / "images.parquet", index=False)


def batches_of(shard: PreparedShard) -> Iterator[Batch]:
    """Create the shard's temporary file in full size, so that a full disk is noticed now, and yield its batches."""
    with shard.temporary.open("wb") as file:
        file.write(shard.header)
        file.flush()
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, shard.file_size)
    image_bytes, members, sha256 = math.prod(shard.shape[1:]), members_of(shard.rows), shard.rows["sha256"].tolist()
    for start in shard.starts:
        part = slice(start, start + shard.starts.step)
        position = len(shard.header) + start * image_bytes
        yield Batch(shard.stem, members[part], sha256[part], shard.temporary.absolute(), position)


def prepare_batch(data: Path, settings: Preprocess, max_pixels: int, batch: Batch) -> int:
    """Decode and resize a batch, write it to its position in the file, and return the number of images.

    Raises:
        DiptychError: an image has changed since it was validated.
        OSError: the file cannot be written.
    """
    # The file is not mapped: on a full disk a write fails with an error, but a mapped page with a fatal signal.
    with batch.output.open("r+b") as file:
        file.seek(batch.start)
        contents = read_members(data, batch.members)
        for member, sha256, content in zip(batch.members, batch.sha256, contents, strict=True):
            if hashlib.sha256(content).hexdigest() != sha256:
                raise _changed(data, member, "its SHA-256 is another one")
            image = _open(data, member, content, max_pixels)
            file.write(to_pixels(image, settings.image_size, settings.resize).tobytes())
    return len(batch.members)


def _open(data: Path, member: Member, content: bytes, max_pixels: int) -> Image.Image:
    try:
        return open_image(content, max_pixels)
    except ImageError as error:
        raise _changed(data, member, str(error)) from None


def _changed(data: Path, member: Member, reason: str) -> DiptychError:
    name = f"{member.name} in {data / member.shard}"
    return DiptychError(f"{name} has changed since it was validated ({reason}). Run `diptych run --force`.")
