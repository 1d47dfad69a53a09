"""`diptych feedback`: what users have said of results, as new pairs and as judgements."""

from __future__ import annotations

from pathlib import Path

import click

from diptych.cli.console import print_result
from diptych.cli.index import COLLECTION
from diptych.errors import DiptychError
from diptych.project.environment import enter

_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@click.group()
def feedback() -> None:
    """Use the marks that users of `diptych serve --feedback` have set on results."""


@feedback.command()
@COLLECTION
@click.option(
    "--drop", type=click.Path(path_type=Path), help="Write the confirmed pairs as a drop: a folder in the inbox."
)
@click.option("--qrels", type=click.Path(path_type=Path), help="Write qrels.txt and queries.tsv into this folder.")
@_JSON
def export(collection: str, drop: Path | None, qrels: Path | None, as_json: bool) -> None:
    """Write what users have marked; a pair counts as most of its marks say."""
    if not (drop or qrels):
        raise click.UsageError("Say what to write: --drop FOLDER for the inbox, --qrels FOLDER for judgements.")
    for folder in (drop, qrels):
        if folder is not None and folder.exists():
            raise DiptychError(f"{folder} is there already; name a folder that is not.")
    workspace = enter()
    from diptych.project.params import read_params
    from diptych.registry.serving import latest_index
    from diptych.serving.feedback import Marks, export_drop, export_qrels

    marks = Marks(workspace.feedback).read(collection)
    written, lines = {}, []
    if drop:
        index = latest_index(workspace, read_params(workspace), collection)
        written["pairs"] = export_drop(marks, index, drop)
        lines.append(f"{written['pairs']:,} confirmed pairs are in {drop}: `diptych run --inbox {drop.parent}`.")
    if qrels:
        written["judgements"] = export_qrels(marks, qrels)
        lines.append(f"{written['judgements']:,} judgements are in {qrels}: `diptych feedback evaluate {qrels}`.")
    print_result(written, "\n".join(lines), as_json)


@feedback.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("version", required=False)
@COLLECTION
@_JSON
def evaluate(folder: Path, version: str | None, collection: str, as_json: bool) -> None:
    """Measure VERSION on the real queries in FOLDER, which has qrels.txt and queries.tsv.

    The collection is indexed with that version: `diptych index VERSION`.
    """
    workspace = enter()
    from diptych.project.params import read_params
    from diptych.registry.serving import load_retriever, located, open_index
    from diptych.serving.judged_queries import measure, read_judged_queries
    from diptych.serving.searcher import Searcher

    params, judged = read_params(workspace), read_judged_queries(folder)
    with located(workspace, params, version) as (package, title):
        retriever = load_retriever(package, params)
        index = open_index(workspace, collection, package)
    metrics = measure(Searcher(retriever, index), judged)
    text = (
        f"{title} on {metrics.queries:,} queries: MRR {metrics.mrr:.3f}, recall@10 {metrics.recall_at_10:.1f}, "
        f"{metrics.wrong_at_10:.2f} wrong images among the first ten."
    )
    print_result({"model": title, **metrics._asdict()}, text, as_json)
