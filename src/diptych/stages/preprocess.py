"""The preprocess stage: pixels and token ids of the accepted images and captions."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from diptych.config import Params
from diptych.data.accepted import CaptionTexts, copy_captions, read_columns, read_table
from diptych.data.cores import worker_count
from diptych.data.preparing import prepare_captions, prepare_images
from diptych.data.sending import send_images
from diptych.data.tokenization import copy_tokenizer, learn_tokenizer, save_tokenizer
from diptych.files import atomic_path
from diptych.project.pixels import lacks_images
from diptych.project.workspace import Workspace

_log = logging.getLogger(__name__)


def run(workspace: Workspace, params: Params) -> None:
    """Write artifacts/tokenizer/ and artifacts/prepared/.

    Raises:
        DiptychError: validate has not run, the pretrained tokenizer is missing, or an image cannot be prepared.
    """
    begin = time.monotonic()
    with atomic_path(workspace.tokenizer) as folder:
        if params.model.text_tower.pretrained is None:
            _learn_tokenizer(folder, workspace, params)
        else:
            copy_tokenizer(params.model.text_tower, folder, params.preprocess.max_tokens)
    with atomic_path(workspace.prepared) as folder:
        folder.mkdir()
        copy_captions(workspace.captions, folder / "captions.parquet")
        images, shards, reused = _prepare_images(folder, workspace, params)
        captions = prepare_captions(folder, tokenizer=workspace.tokenizer, settings=params.preprocess)
    _log.info(
        "Prepared %d images (%d of %d shards before) and %d captions in %.1f s.",
        images,
        reused,
        shards,
        captions,
        time.monotonic() - begin,
    )


def _learn_tokenizer(folder: Path, workspace: Workspace, params: Params) -> None:
    """Learn the tokenizer of a text tower without pretrained weights from the train captions."""
    manifest = read_columns(workspace.manifest, "image_id", "split", repair="Run `dvc repro validate`.")
    train = manifest["image_id"][manifest["split"] == params.data.splits.train]
    tokenizer = learn_tokenizer(CaptionTexts(workspace.captions, train), params.preprocess.vocabulary_size)
    save_tokenizer(tokenizer, folder, params.preprocess.max_tokens)


def _prepare_images(folder: Path, workspace: Workspace, params: Params) -> tuple[int, int, int]:
    """Return the numbers of images, of their shards, and of those shards that were prepared before."""
    manifest = read_table(workspace.manifest)
    cache, workers = workspace.local / "cache", worker_count(params.threads)
    if lacks_images(workspace):
        reused = send_images(
            workspace.data,
            manifest,
            folder,
            prepared=workspace.prepared,
            record=cache / "sent.txt",
            settings=params.preprocess,
            workers=workers,
        )
    else:
        reused = prepare_images(
            workspace.data,
            manifest,
            folder,
            cache=cache / "prepared",
            settings=params.preprocess,
            workers=workers,
        )
    return len(manifest), manifest["shard"].nunique(), reused
