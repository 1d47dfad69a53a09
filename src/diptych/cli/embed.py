"""`diptych embed`: a collection's embeddings as files for other search engines."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from diptych.cli.console import print_result
from diptych.cli.index import COLLECTION
from diptych.errors import DiptychError
from diptych.project.environment import enter

if TYPE_CHECKING:
    from diptych.serving.exporting import Compression


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("version", required=False)
@COLLECTION
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "int8", "binary"]),
    default="float16",
    show_default=True,
    help="Type of the stored numbers.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what embeddings.json says.")
def embed(folder: Path, version: str | None, collection: str, dtype: Compression, as_json: bool) -> None:
    """Write the embeddings of a collection to FOLDER, as clip-retrieval lays them out.

    The collection is indexed with VERSION: `diptych index VERSION`. FOLDER/embeddings.json says what the files were
    made of, how a query is made, and how many of the first ten results the compression keeps.
    """
    if folder.exists():
        raise DiptychError(f"{folder} is there already; name a folder that is not.")
    workspace = enter()
    from diptych.project.params import read_params
    from diptych.registry.serving import load_retriever, located, open_index
    from diptych.serving.exporting import export_embeddings
    from diptych.serving.searcher import Searcher

    params = read_params(workspace)
    with located(workspace, params, version) as (package, title):
        retriever = load_retriever(package, params)
        index = open_index(workspace, collection, package)
    stamp = export_embeddings(Searcher(retriever, index), title, dtype, folder)
    kept = stamp["agreement"]
    text = (
        f"{stamp['images']:,} embeddings of {title} are in {folder} as {dtype}. They keep {kept['recall_at_10']:.1f} % "
        f"({kept['low']:.1f} to {kept['high']:.1f}) of the first ten results, on {kept['queries']:,} queries."
    )
    print_result(stamp, text, as_json)
