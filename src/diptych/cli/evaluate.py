"""`diptych evaluate`: the metrics and the report for any model's embeddings."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from diptych.cli.console import print_result

log = logging.getLogger(__name__)

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.option("--image-embeddings", type=_FILE, required=True, help=".npy file with a row for each image.")
@click.option("--text-embeddings", type=_FILE, required=True, help=".npy file with a row for each caption.")
@click.option(
    "--captions",
    type=_FILE,
    required=True,
    help="COCO captions file that lists these images and captions in this order.",
)
@click.option(
    "--images",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of the images; the report shows some of them.",
)
@click.option(
    "--links-within",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder that links among the images may lead into.",
)
@click.option("--report", type=_FILE, help="HTML page to write the report to.")
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
    """Measure retrieval by the embeddings of any model.

    Row i of the image embeddings belongs to the i-th of "images" in the captions file. Row j of the text embeddings
    belongs to the j-th of "annotations". The embeddings are float16 or float32. They are ranked by the cosine, so their
    lengths do not matter.
    """
    if images and not report:
        raise click.UsageError("--images are shown in the report; give --report as well.")
    if report and report.resolve() in {path.resolve() for path in (image_embeddings, text_embeddings, captions)}:
        raise click.UsageError(f"--report {report} would overwrite what is evaluated.")
    from diptych.model.device import set_threads
    from diptych.report.external import write_external_report
    from diptych.report.table import table
    from diptych.retrieval.evaluation import evaluate_embeddings
    from diptych.retrieval.external import ExternalGallery
    from diptych.retrieval.judgements import add_extended
    from diptych.retrieval.metrics import chance_metrics
    from diptych.retrieval.uncertainty import judge

    set_threads(None)
    gallery = ExternalGallery(captions, images, links_within)
    embeddings = gallery.read_embeddings(image_embeddings, text_embeddings)
    evaluation = evaluate_embeddings(*embeddings, gallery.image_of_caption)
    add_extended(evaluation, gallery.image_ids, gallery.caption_ids)
    uncertainty = judge(evaluation.ranks, gallery.image_of_caption)
    chance = chance_metrics(gallery.image_of_caption, len(gallery))
    print_result(evaluation.metrics, table(evaluation, uncertainty, chance, captions.name), as_json)
    if report:
        sources = {"Image embeddings": image_embeddings, "text embeddings": text_embeddings, "captions": captions}
        write_external_report(report, gallery, evaluation, uncertainty, sources, has_images=images is not None)
        log.info("Report: %s", report)
