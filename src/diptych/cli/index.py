"""`diptych index`: bring the index of a collection up to date with a model."""

from __future__ import annotations

import logging
import math
import shlex
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from diptych.cli.console import print_result
from diptych.errors import DiptychError, printable
from diptych.project.environment import enter

if TYPE_CHECKING:
    from diptych.project.workspace import Workspace
    from diptych.serving.indexing import IndexSummary
    from diptych.serving.sources import Source
    from diptych.serving.store import CollectionState, Store

log = logging.getLogger(__name__)
_SHOWN = 3
COLLECTION = click.option("--collection", metavar="NAME", default="dataset", show_default=True, help="The collection.")


@click.command()
@click.argument("version", required=False)
@COLLECTION
@click.option("--images", metavar="FOLDER|s3://…", help="Index the image files below it.")
@click.option(
    "--table",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Index the files of a CSV or Parquet table: column `file`, captions, and attributes to filter by.",
)
@click.option("--split", default="", help="Index this split of the dataset alone.")
@click.option("--rerank/--no-rerank", default=None, help="Keep what re-ranking reads; default: if the model re-ranks.")
@click.option(
    "--min-recall",
    type=click.FloatRange(0, 1),
    help="Share of the first ten results of exact search that approximate search of a large collection has to find; "
    "1 searches exactly. Default: as before, or else 0.98.",
)
@click.option("--remove", is_flag=True, help="Remove the collection with all its indexes; the images stay.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def index(
    version: str | None,
    collection: str,
    images: str | None,
    table: Path | None,
    split: str,
    rerank: bool | None,
    min_recall: float | None,
    remove: bool,
    as_json: bool,
) -> None:
    """Index a collection with VERSION: a number, an alias or a folder; default: the champion, or else the challenger.

    The dataset is the collection by default. Another one is made by --images or --table, and needs them only then.
    Images that are indexed already are not embedded again.
    """
    if min_recall is not None and math.isnan(min_recall):
        raise click.UsageError("--min-recall is a share from 0 to 1.")
    workspace = enter()
    from diptych.registry.serving import open_store

    store = open_store(workspace)
    if remove:
        if not store.has(collection):
            _require(store, collection)
        with store.held(collection):
            store.remove(collection)
        print_result({"removed": collection}, f"The collection {collection} is removed.", as_json)
        return
    source = _source(store, workspace, collection, images, table, split)
    started = time.perf_counter()
    title, summary = _index(workspace, store, collection, source, version, rerank, min_recall)
    for path, reason in summary.unreadable[:_SHOWN]:
        log.warning("%s is left out: %s", printable(path), reason)
    text = (
        f"{collection}, {title}: {summary.describe()}, in {time.perf_counter() - started:.1f} s. "
        f"`{shlex.join(['diptych', 'serve', *([version] if version else []), '--collection', collection])}` searches "
        "them."
    )
    print_result({"collection": collection, "model": title, **summary.to_json()}, text, as_json)


def _index(
    workspace: Workspace,
    store: Store,
    collection: str,
    source: Source,
    version: str | None,
    rerank: bool | None,
    min_recall: float | None,
) -> tuple[str, IndexSummary]:
    """Index a collection; return the title of the version and the outcome."""
    from diptych.project.params import read_params
    from diptych.project.provenance import folder_sha256
    from diptych.registry.serving import is_in_use, load_retriever, located
    from diptych.serving.indexing import announce, update_index

    params = read_params(workspace)
    with located(workspace, params, version) as (folder, title):
        known, model = store.collection(collection), folder_sha256(folder)
        load = partial(load_retriever, folder, params)
        summary = update_index(store, collection, source, model, load, rerank=rerank, min_recall=min_recall)
    # A version that is only tried must not make the index of the one in use outdated.
    if known is None or known.source != source.description or is_in_use(workspace, params, version):
        announce(store, collection, summary)
    return title, summary


def _source(
    store: Store, workspace: Workspace, collection: str, images: str | None, table: Path | None, split: str
) -> Source:
    """Return the source that the options name, or the one that the collection was made from."""
    from diptych.serving.collections import DATASET, open_source
    from diptych.serving.sources import DatasetSource, FilesSource
    from diptych.serving.table_source import TableSource

    if (images or table) and split:
        raise click.UsageError("--split is of the dataset; --images and --table make a collection of other images.")
    if (images or table or split) and collection == DATASET:
        raise click.UsageError("--images, --table and --split make a collection of their own: name it by --collection.")
    if table:
        return TableSource(table, images)
    if images:
        return FilesSource(images)
    if collection == DATASET or split:
        return DatasetSource(workspace.data, split)
    return open_source(_require(store, collection).source, workspace.data)


def _require(store: Store, collection: str) -> CollectionState:
    """Return the state of a collection; raise an error that names those that there are, where it was never indexed."""
    known = store.collection(collection)
    if known is None:
        names = store.collections()
        there_are = f"There are: {', '.join(names)}." if names else "There are none yet."
        raise DiptychError(
            f"There is no collection {collection}. {there_are} Make it from a folder with --images, or from a table "
            "with --table."
        )
    return known
