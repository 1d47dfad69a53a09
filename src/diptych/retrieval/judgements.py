"""COCO's test judged by more than its own captions, because many captions fit other images as well.

For ECCV Caption (Chun et al., ECCV 2022) and Crisscrossed Captions (Parekh et al., EACL 2021), people judged which
ones do, for the 5,000 images with 25,000 captions of the Karpathy test split. Both come with the package eccv-caption,
an extra.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from diptych.retrieval.evaluation import Deep, Evaluation
from diptych.retrieval.metrics import KS
from diptych.retrieval.ranking import DIRECTIONS

NAMES = {
    "eccv_r1": "eccv_recall@1",
    "eccv_rprecision": "eccv_r_precision",
    "eccv_map_at_r": "eccv_map@r",
    **{f"cxc_r{k}": f"cxc_recall@{k}" for k in KS},
}
"""Names of the figures in metrics.json, by their names in the package."""
LABELS = {
    "eccv_recall@1": "ECCV Caption: recall@1",
    "eccv_r_precision": "ECCV Caption: R-precision",
    "eccv_map@r": "ECCV Caption: mAP@R",
    **{f"cxc_recall@{k}": f"CxC: recall@{k}" for k in KS},
}


def add_extended(evaluation: Evaluation, image_ids: NDArray[np.int64], caption_ids: NDArray[np.int64]) -> None:
    """Add `extended` to the metrics of the last stage, if it ranked COCO's 5K test and the package is installed.

    Args:
        evaluation: the evaluation of N images and M captions.
        image_ids: COCO's ids of the images (N,).
        caption_ids: COCO's ids of the captions (M,).
    """
    *_, metrics = evaluation.metrics.values()
    if extended := extended_judgements(evaluation.deep, image_ids, caption_ids):
        metrics["extended"] = extended


def extended_judgements(
    deep: Deep, image_ids: NDArray[np.int64], caption_ids: NDArray[np.int64]
) -> dict[str, dict[str, float]] | None:
    """Return the figures by direction, in percent; None without the package, or if the ids are not COCO's 5K test.

    Args:
        deep: the first items of all queries.
        image_ids: COCO's ids of the images (N,).
        caption_ids: COCO's ids of the captions (M,).
    """
    try:
        with warnings.catch_warnings():
            # The package warns that a faster JSON library is missing.
            warnings.simplefilter("ignore")
            from eccv_caption import Metrics
    except ImportError:
        return None
    judged = Metrics()
    images, captions = (set(judged.coco_gts[direction]) for direction in DIRECTIONS)
    if set(image_ids.tolist()) != images or not captions <= set(caption_ids.tolist()):
        return None
    # The judgements know five captions of each image; some images have a sixth.
    known = np.isin(caption_ids, list(captions))
    most = max(len(items) for side in judged.eccv_gts.values() for items in side.values())
    captions_of, images_of = deep(max(most, *KS) + int(np.count_nonzero(~known)))
    i2t = {
        image: [caption for caption in row if caption in captions]
        for image, row in zip(image_ids.tolist(), caption_ids[captions_of].tolist(), strict=True)
    }
    t2i = dict(zip(caption_ids[known].tolist(), image_ids[images_of[known]].tolist(), strict=True))
    wanted = ("eccv_r1", "eccv_rprecision", "eccv_map_at_r", "cxc_recalls")
    figures = judged.compute_all_metrics(i2t, t2i, target_metrics=wanted, Ks=KS, verbose=False)
    return {
        direction: {name: 100.0 * float(figures[theirs][direction]) for theirs, name in NAMES.items()}
        for direction in DIRECTIONS
    }
