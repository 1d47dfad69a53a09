"""The report for embeddings that any model made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diptych.config import Evaluate
from diptych.errors import DiptychError
from diptych.files import file_sha256
from diptych.report.html import Findings, Setting, write_report
from diptych.retrieval.evaluation import Evaluation
from diptych.retrieval.external import ExternalGallery
from diptych.retrieval.failures import find_failures
from diptych.retrieval.uncertainty import Uncertainty


def write_external_report(
    path: Path,
    gallery: ExternalGallery,
    evaluation: Evaluation,
    uncertainty: Uncertainty,
    sources: Mapping[str, Path],
    *,
    has_images: bool,
) -> None:
    """Write the page `path`, with examples if the gallery `has_images` to show.

    `sources` are the files that the figures depend on, by the name that the page gives them.

    Raises:
        DiptychError: an image cannot be shown, or the page cannot be written.
    """
    failures = find_failures(evaluation, gallery.image_of_caption, gallery.captions, {})
    findings = Findings(evaluation, uncertainty, failures)
    setting = Setting(gallery.path.stem, {name: file_sha256(file) for name, file in sources.items()})
    try:
        write_report(path, gallery, findings, setting, [], Evaluate().report_queries if has_images else 0)
    except OSError as error:
        raise DiptychError(f"{path} cannot be written: {error.strerror}.") from None
