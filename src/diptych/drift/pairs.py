"""Statistics and embeddings of pairs, from which profiles are computed.

Images are read from the dataset's shards at one small size, so profiles are comparable across changes of `preprocess`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from diptych.data.cores import worker_count
from diptych.data.images import open_image, to_pixels
from diptych.data.shards import Member, members_of, read_members
from diptych.data.workers import in_processes
from diptych.retriever import Retriever

SIDE = 32
"""Width and height of the images that are measured, in pixels; contrast depends on it."""
PICTURES = ("brightness", "contrast", "saturation")
_BATCH = 64
_MAX_PIXELS = 2**62
"""Validation has already refused larger images."""


def picture_statistics(data: Path, images: pd.DataFrame, threads: int | None) -> NDArray[np.float64]:
    """Return brightness (mean luma), contrast (its standard deviation) and mean saturation, from 0 to 255: (n, 3).

    `images` are n rows of the manifest of the dataset in `data`; `threads` are those of params.yaml.
    """
    members = members_of(images)
    batches = [members[start : start + _BATCH] for start in range(0, len(members), _BATCH)]
    # Starting processes takes longer than a few batches.
    workers = worker_count(threads) if len(batches) > 4 else 1
    measured = [row for rows in in_processes(partial(_measure, data), batches, workers) for row in rows]
    return np.array(measured, np.float64).reshape(-1, len(PICTURES))


def embed_pairs(data: Path, images: pd.DataFrame, captions: list[str], model: Path, device: str) -> NDArray[np.float16]:
    """Return the embeddings of images and their captions by the model in the folder `model`, side by side: (n, 2 d).

    Raises:
        DiptychError: the folder holds no whole model.
    """
    retriever = Retriever.load(model, device)
    image = retriever.encode_images(list(read_members(data, members_of(images))))
    text = retriever.encode_texts(captions)
    return np.concatenate([image.embedding, text.embedding], axis=1).astype(np.float16)


def _measure(data: Path, members: list[Member]) -> list[tuple[float, float, float]]:
    rows = []
    for content in read_members(data, members):
        image = open_image(content, _MAX_PIXELS)
        picture = Image.fromarray(to_pixels(image, SIDE, "stretch"))
        luma, saturation = (np.asarray(picture.convert(mode), np.float64) for mode in ("L", "HSV"))
        rows.append((float(luma.mean()), float(luma.std()), float(saturation[..., 1].mean())))
    return rows
