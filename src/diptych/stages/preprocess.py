"""The preprocess stage: pixels and token ids of the accepted images and captions."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pandas as pd

from diptych.config import Params
from diptych.data.accepted import read_table
from diptych.data.cores import worker_count
from diptych.data.preparing import prepare_captions, prepare_images
from diptych.data.tokenization import copy_tokenizer, learn_tokenizer, save_tokenizer
from diptych.files import atomic_path
from diptych.project.workspace import Workspace

_log = logging.getLogger(__name__)


def run(workspace: Workspace, params: Params) -> None:
    """Write artifacts/tokenizer/ and artifacts/prepared/.

    Raises:
        DiptychError: validate has not run, the pretrained tokenizer is missing, or an image cannot be prepared.
    """
    begin = time.monotonic()
    manifest, captions = read_table(workspace.manifest), read_table(workspace.captions)
    with atomic_path(workspace.tokenizer) as folder:
        if params.model.text_tower.pretrained is None:
            _learn_tokenizer(folder, manifest, captions, params)
        else:
            copy_tokenizer(params.model.text_tower, folder, params.preprocess.max_tokens)
    with atomic_path(workspace.prepared) as folder:
        reused = prepare_images(
            workspace.data,
            manifest,
            folder,
            cache=workspace.local / "cache" / "prepared",
            settings=params.preprocess,
            workers=worker_count(params.threads),
        )
        prepare_captions(captions, folder, tokenizer=workspace.tokenizer, settings=params.preprocess)
    _log.info(
        "Prepared %d images (%d of %d shards from the cache) and %d captions in %.1f s.",
        len(manifest),
        reused,
        manifest["shard"].nunique(),
        len(captions),
        time.monotonic() - begin,
    )


def _learn_tokenizer(folder: Path, manifest: pd.DataFrame, captions: pd.DataFrame, params: Params) -> None:
    """Learn the tokenizer of a text tower without pretrained weights from the train captions."""
    train = manifest.loc[manifest["split"] == params.data.splits.train, "image_id"]
    texts = captions.loc[captions["image_id"].isin(train), "caption"].tolist()
    save_tokenizer(learn_tokenizer(texts, params.preprocess.vocabulary_size), folder, params.preprocess.max_tokens)
