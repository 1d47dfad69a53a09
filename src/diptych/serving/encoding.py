"""Encoding of the image files of a collection, a batch at a time: what an index keeps of the content of each file.

A node of a cluster reads the files of its batches itself, so pixels do not travel.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from diptych.data.images import ImageError
from diptych.serving.pictures import Picture, read_picture
from diptych.serving.sources import Source, SourceError

if TYPE_CHECKING:
    from diptych.retriever import Retriever


log = logging.getLogger(__name__)


class EncodedFiles(NamedTuple):
    """A batch of n image files that were read, and their new contents."""

    hashes: list[str]
    """(n,), SHA-256 of each file; empty where it cannot be read."""
    errors: list[str]
    """(n,), reason why a file cannot be read or decoded; empty where there is none."""
    contents: pa.Table
    """A row for each content that was not known, with the columns of `content_schema`."""


class _File(NamedTuple):
    """An image file that was read. Its content is known to the index, or it has a picture, or an error."""

    hash: str
    picture: Picture | None = None
    error: str = ""


def content_schema(dim: int, grid: tuple[int, int] | None) -> pa.Schema:
    """Return the columns of an index that depend on the content of a file, with its SHA-256.

    Args:
        dim: size of an embedding; the column has the negative bias behind it.
        grid: number and size of the grid tokens to keep; None: none are kept.
    """
    columns = {
        "hash": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "thumbnail": pa.binary(),
        "embedding": pa.list_(pa.float32(), dim + 1),
    }
    if grid is not None:
        columns["grid"] = pa.list_(pa.float16(), grid[0] * grid[1])
    return pa.schema(columns)


@dataclass(frozen=True)
class FileEncoder:
    """A model that encodes the image files of a source; it can be sent to the nodes of a cluster.

    Attributes:
        retriever: the model.
        source: the place where the files are.
        known: SHA-256 of the contents that are not encoded again. Here it may grow between two batches; a node has
            what it was when the work began.
        schema: columns of the result, as `content_schema` gives them.
        threads: number of CPU threads of torch.
    """

    retriever: Retriever
    source: Source
    known: Collection[str]
    schema: pa.Schema
    threads: int

    def encode(self, paths: Sequence[str]) -> EncodedFiles:
        """Read files of the source, and encode those whose content is not known."""
        # It takes seconds to import, and an index that is up to date encodes nothing.
        from diptych.model.device import prepare

        prepare(self.retriever.device.type, self.threads)
        with ThreadPoolExecutor() as pool:
            files = list(pool.map(self._read, paths))
        pictures = {file.hash: file.picture for file in files if file.picture}
        contents = self._encode(pictures) if pictures else self.schema.empty_table()
        return EncodedFiles([file.hash for file in files], [file.error for file in files], contents)

    def completed(self, paths: Sequence[str], files: EncodedFiles) -> EncodedFiles:
        """Return a batch with those files that could not be read, which this process may be able to read."""
        missing = [index for index, digest in enumerate(files.hashes) if not digest]
        if not missing:
            return files
        again = self.encode([paths[index] for index in missing])
        if readable := [paths[index] for index, digest in zip(missing, again.hashes, strict=True) if digest]:
            log.warning(
                "The cluster could not read %d image(s), such as %s, which this machine can: look at the credentials "
                "and mounts of the nodes.",
                len(readable),
                readable[0],
            )
        hashes, errors = list(files.hashes), list(files.errors)
        for index, digest, error in zip(missing, again.hashes, again.errors, strict=True):
            hashes[index], errors[index] = digest, error
        there = set(files.contents["hash"].to_pylist())
        added = again.contents.filter(pa.array([digest not in there for digest in again.contents["hash"].to_pylist()]))
        return EncodedFiles(hashes, errors, pa.concat_tables([files.contents, added]))

    def _read(self, path: str) -> _File:
        try:
            content = self.source.read(path)
        except SourceError as error:
            return _File("", error=str(error))
        digest = hashlib.sha256(content).hexdigest()
        if digest in self.known:
            return _File(digest)
        try:
            return _File(digest, read_picture(content, self.retriever.preprocessing))
        except ImageError as error:
            return _File(digest, error=str(error))

    def _encode(self, pictures: Mapping[str, Picture]) -> pa.Table:
        """Return a row for each picture; they are named by the hashes of their files."""
        images = [picture.pixels for picture in pictures.values()]
        encoded = self.retriever.encode_images(images, tokens="grid" in self.schema.names)
        columns: dict[str, Any] = {"hash": list(pictures)}
        for name in ("width", "height", "thumbnail"):
            columns[name] = [getattr(picture, name) for picture in pictures.values()]
        columns["embedding"] = _vectors(np.concatenate([encoded.embedding, -encoded.bias[:, None]], axis=1))
        if encoded.tokens is not None:
            columns["grid"] = _vectors(encoded.tokens.numpy().astype(np.float16).reshape(len(images), -1))
        return pa.table(columns, schema=self.schema)


def _vectors(values: np.ndarray[Any, Any]) -> pa.FixedSizeListArray:
    """Return the rows of a matrix as an Arrow column."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
