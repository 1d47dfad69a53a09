"""`diptych evaluate`: the metrics and the report for any model's embeddings."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from diptych.errors import DiptychError

log = logging.getLogger(__name__)

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--image-embeddings", type=_FILE, required=True, help="An .npy file, a row an image.")
@click.option("--text-embeddings", type=_FILE, required=True, help="An .npy file, a row a caption.")
@click.option(
    "--captions", type=_FILE, required=True, help="COCO captions of these images and captions, in their order."
)
@click.option("--images", type=click.Path(file_okay=False, path_type=Path), help="The images' folder, to show some.")
@click.option(
    "--links-within",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that links among the images may lead into.",
)
@click.option("--report", type=_FILE, help="Where to write a report, an HTML page.")
@click.option("--json", "as_json", is_flag=True, help="Print the metrics as JSON, in the form of reports/metrics.json.")
def evaluate(
    image_embeddings: Path,
    text_embeddings: Path,
    captions: Path,
    images: Path | None,
    links_within: Path | None,
    report: Path | None,
    as_json: bool,
) -> None:
    """Measure retrieval by any model's embeddings.

    Row i of the image embeddings belongs to the i-th of "images" in the captions file, row j of the text embeddings to
    the j-th of "annotations". They are float16 or float32 and ranked by the cosine, so their lengths do not matter.
    """
    if images and not report:
        raise click.UsageError("--images are shown in a report: say with --report where to write it.")
    if report and report.resolve() in {path.resolve() for path in (image_embeddings, text_embeddings, captions)}:
        raise click.UsageError(f"--report {report} would overwrite what is evaluated.")
    from diptych.config import Evaluate
    from diptych.files import file_sha256
    from diptych.model.device import set_threads
    from diptych.report.html import Findings, Setting, write_report
    from diptych.report.table import table
    from diptych.retrieval.evaluation import evaluate_embeddings
    from diptych.retrieval.external import ForeignGallery
    from diptych.retrieval.failures import find_failures
    from diptych.retrieval.judgements import add_extended
    from diptych.retrieval.metrics import chance_metrics
    from diptych.retrieval.uncertainty import judge

    set_threads(None)
    gallery = ForeignGallery(captions, images, links_within)
    image, text = gallery.read(image_embeddings, "images"), gallery.read(text_embeddings, "captions")
    if image.shape[1] != text.shape[1]:
        raise DiptychError(
            f"{image_embeddings} has {image.shape[1]} dimensions and {text_embeddings} {text.shape[1]}: they must have "
            "as many, as of one model."
        )
    evaluation = evaluate_embeddings(image, text, gallery.image_of_caption)
    add_extended(evaluation, gallery.image_ids, gallery.caption_ids)
    uncertainty = judge(evaluation.ranks, gallery.image_of_caption)
    if as_json:
        click.echo(json.dumps(evaluation.metrics, indent=2))
    else:
        click.echo(
            table(evaluation, uncertainty, chance_metrics(gallery.image_of_caption, len(gallery)), captions.name)
        )
    if report:
        files = {"Image embeddings": image_embeddings, "text embeddings": text_embeddings, "captions": captions}
        made_of = {name: file_sha256(path) for name, path in files.items()}
        queries = Evaluate().report_queries if images else 0
        failures = find_failures(evaluation, gallery.image_of_caption, gallery.captions, {})
        findings = Findings(evaluation, uncertainty, failures)
        try:
            write_report(report, gallery, findings, Setting(captions.stem, made_of), [], queries)
        except OSError as error:
            raise DiptychError(f"{report} cannot be written: {error.strerror}.") from None
        log.info("Report: %s", report)
