"""Evaluation of packaged models on the project's test split and on guard sets, the same for every model.

A model brings its own preprocessing. Guard sets are prepared for it, and so is the test split where this is not the
project's of today.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.config import Params
from diptych.data.accepted import Accepted, read_accepted
from diptych.data.cores import worker_count
from diptych.data.prepared import Prepared, PreparedSplit
from diptych.data.preparing import prepare_captions, prepare_images
from diptych.errors import DiptychError
from diptych.files import file_sha256
from diptych.model.device import prepare
from diptych.model.package import Preprocessing
from diptych.project.workspace import Workspace
from diptych.registry.guard_sets import GuardGallery
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
    guard_ranks: dict[str, Ranks]
    """Ranks of the last stage on each guard set, by its name."""


def gallery(workspace: Workspace, params: Params) -> Gallery:
    """Return the test split, with the slices of its queries as in the report.

    Raises:
        DiptychError: there is none, or validation has accepted other pairs since it was prepared.
    """
    split = _prepared(workspace, params).split("test")
    accepted = _accepted(workspace, params)
    ids, captions = accepted.images["image_id"].tolist(), accepted.captions["caption"].tolist()
    # A split that is prepared for a model has to have the same queries.
    if ids != split.image_ids.tolist() or captions != split.captions:
        raise DiptychError(
            f"{workspace.prepared} is of another dataset than {workspace.manifest}. Run `dvc repro preprocess`."
        )
    of_split = attributes(workspace.manifest, split)
    made = parts(split.image_of_caption, split.captions, of_split.of_images, of_split.objects)
    return Gallery(split.image_of_caption, len(split), made)


def measure(
    model: Path, workspace: Workspace, params: Params, name: str, guard_sets: Sequence[GuardGallery] = ()
) -> Measured:
    """Return the ranks and metrics of the model in the folder `model` on the test split, and its ranks on guard sets.

    Progress bars show `name`.

    Raises:
        DiptychError: the folder holds no whole model, or there is no dataset to measure it on.
    """
    device = prepare(params.device, params.threads)
    retriever = Retriever.load(model, str(device), params.evaluate.batch_size)
    top_k = params.evaluate.top_k
    with _test_split(retriever.preprocessing, model, workspace, params) as split:
        evaluation = retriever.evaluate(retriever.embed(split, f"embed for {name}"), top_k)
    guard_ranks = {}
    for guard_set in guard_sets:
        cache = workspace.local / "cache" / "guard_sets" / guard_set.name
        with _prepared_for(retriever.preprocessing, model, guard_set.accepted, cache, workspace, params) as split:
            embedded = retriever.embed(split, f"embed {guard_set.name} for {name}")
        guard_ranks[guard_set.name] = retriever.evaluate(embedded, top_k).ranks["reranked"]
    return Measured(evaluation.ranks["reranked"], evaluation.metrics, guard_ranks)


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
    cache = workspace.local / "cache" / "measuring"
    with _prepared_for(preprocessing, model, _accepted(workspace, params), cache, workspace, params) as split:
        yield split


@contextmanager
def _prepared_for(
    preprocessing: Preprocessing, model: Path, accepted: Accepted, cache: Path, workspace: Workspace, params: Params
) -> Iterator[PreparedSplit]:
    """Prepare the accepted images and captions, all of the test split, as the model in the folder `model` reads them.

    The pixels stay in `cache`.
    """
    settings = params.preprocess.model_copy(update=preprocessing.model_dump())
    workspace.local.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="measuring-", dir=workspace.local) as temporary:
        folder, workers = Path(temporary), worker_count(params.threads)
        prepare_images(accepted.data, accepted.images, folder, cache=cache, settings=settings, workers=workers)
        accepted.captions.to_parquet(folder / "captions.parquet", index=False)
        prepare_captions(folder, tokenizer=model, settings=settings)
        yield Prepared(folder, params.data.splits).split("test")


def _prepared(workspace: Workspace, params: Params) -> Prepared:
    try:
        return Prepared(workspace.prepared, params.data.splits)
    except DiptychError as error:
        raise DiptychError(f"There is nothing to measure a model on: {error}") from None


def _accepted(workspace: Workspace, params: Params) -> Accepted:
    """Return the images and captions of the test split that validation has accepted."""
    accepted = read_accepted(workspace.data, workspace.manifest, workspace.captions)
    images = accepted.images[accepted.images["split"] == params.data.splits.test]
    captions = accepted.captions[accepted.captions["image_id"].isin(images["image_id"])]
    return replace(accepted, images=images, captions=captions)


def _is_same(tokenizer: Path, other: Path) -> bool:
    try:
        return file_sha256(tokenizer) == file_sha256(other)
    except OSError as error:
        raise DiptychError(f"There is nothing to measure a model on: {error}. Run `dvc repro preprocess`.") from None
