"""Evaluation of packaged models on the project's test split, the same for every model.

A model brings its own preprocessing. Where this is not the project's of today, the test split is prepared for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diptych.config import Params
from diptych.data.accepted import read_table
from diptych.data.prepared import Prepared, PreparedSplit
from diptych.data.preparing import prepare_captions, prepare_images
from diptych.data.workers import worker_count
from diptych.errors import DiptychError
from diptych.files import file_sha256
from diptych.model.device import prepare
from diptych.model.package import Preprocessing
from diptych.project.workspace import Workspace
from diptych.retrieval.attributes import attributes
from diptych.retrieval.metrics import Metrics
from diptych.retrieval.ranking import Ranks
from diptych.retrieval.slices import Part, parts
from diptych.retriever import Retriever

TOKENIZER = "tokenizer.json"


class Gallery(NamedTuple):
    """The queries that models are compared on."""

    image_of_caption: NDArray[np.int64]
    """(M,), index of each caption's image."""
    images: int
    """Number of images."""
    parts: list[Part]
    """Slices of the queries, as in the report."""


class Measured(NamedTuple):
    """Ranks and metrics of one model."""

    ranks: Ranks
    """Ranks of the last stage, re-ranked by the fusion."""
    metrics: dict[str, Metrics]
    """Metrics by stage."""


def gallery(workspace: Workspace, params: Params) -> Gallery:
    """Return the test split, with the slices of its queries as in the report.

    Raises:
        DiptychError: there is none, or validation has accepted other pairs since it was prepared.
    """
    split = _prepared(workspace, params).split("test")
    images, captions = _accepted(workspace, params)
    # A split that is prepared for a model has to have the same queries.
    if images["image_id"].tolist() != split.image_ids.tolist() or captions["caption"].tolist() != split.captions:
        raise DiptychError(
            f"{workspace.prepared} is of another dataset than {workspace.manifest}. Run `dvc repro preprocess`."
        )
    of_split = attributes(workspace.manifest, split)
    made = parts(split.image_of_caption, split.captions, of_split.of_images, of_split.objects)
    return Gallery(split.image_of_caption, len(split), made)


def measure(model: Path, workspace: Workspace, params: Params, name: str) -> Measured:
    """Return the ranks and metrics of the model in the folder `model` on the test split; progress bars show `name`.

    Raises:
        DiptychError: the folder holds no whole model, or there is no dataset to measure it on.
    """
    device = prepare(params.device, params.threads)
    retriever = Retriever.load(model, str(device), params.evaluate.batch_size)
    with _test_split(retriever.preprocessing, model, workspace, params) as split:
        evaluation = retriever.evaluate(retriever.embed(split, f"embed for {name}"), params.evaluate.top_k)
    return Measured(evaluation.ranks["reranked"], evaluation.metrics)


@contextmanager
def _test_split(
    preprocessing: Preprocessing, model: Path, workspace: Workspace, params: Params
) -> Iterator[PreparedSplit]:
    """Give the test split as the model in the folder `model` reads it."""
    prepared = _prepared(workspace, params)
    wanted = preprocessing.model_dump()
    same = {name: prepared.settings[name] for name in wanted} == wanted
    if same and _is_same(workspace.tokenizer / TOKENIZER, model / TOKENIZER):
        yield prepared.split("test")
        return
    workspace.local.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="measuring-", dir=workspace.local) as folder:
        settings = params.preprocess.model_copy(update=wanted)
        images, captions = _accepted(workspace, params)
        prepare_images(
            workspace.data,
            images,
            Path(folder),
            cache=workspace.local / "cache" / "measuring",
            settings=settings,
            workers=worker_count(params.threads),
        )
        prepare_captions(captions, Path(folder), tokenizer=model, settings=settings)
        yield Prepared(Path(folder), params.data.splits).split("test")


def _prepared(workspace: Workspace, params: Params) -> Prepared:
    try:
        return Prepared(workspace.prepared, params.data.splits)
    except DiptychError as error:
        raise DiptychError(f"There is nothing to measure a model on: {error}") from None


def _accepted(workspace: Workspace, params: Params) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return images and captions of the test split that validation has accepted."""
    images, captions = read_table(workspace.manifest), read_table(workspace.captions)
    images = images[images["split"] == params.data.splits.test]
    return images, captions[captions["image_id"].isin(images["image_id"])]


def _is_same(tokenizer: Path, other: Path) -> bool:
    try:
        return file_sha256(tokenizer) == file_sha256(other)
    except OSError as error:
        raise DiptychError(f"There is nothing to measure a model on: {error}. Run `dvc repro preprocess`.") from None
