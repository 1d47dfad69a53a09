"""COCO's test judged by more than its own captions: many of them fit other images as well.

ECCV Caption (Chun et al., ECCV 2022) and Crisscrossed Captions (Parekh et al., EACL 2021) had people say which, for the
5,000 images with 25,000 captions of the Karpathy test split. Both come with the package eccv-caption, an extra.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from diptych.retrieval.evaluation import Deep, Evaluation
from diptych.retrieval.metrics import KS

NAMES = {
    "eccv_r1": "eccv_recall@1",
    "eccv_rprecision": "eccv_r_precision",
    "eccv_map_at_r": "eccv_map@r",
    **{f"cxc_r{k}": f"cxc_recall@{k}" for k in KS},
}
"""Of the figures, as the package has them, and here."""
LABELS = {
    "eccv_recall@1": "ECCV Caption: recall@1",
    "eccv_r_precision": "ECCV Caption: R-precision",
    "eccv_map@r": "ECCV Caption: mAP@R",
    **{f"cxc_recall@{k}": f"CxC: recall@{k}" for k in KS},
}


def add_extended(evaluation: Evaluation, image_ids: NDArray[np.int64], caption_ids: NDArray[np.int64]) -> None:
    """Adds `extended` to the metrics of the last stage, if it ranked COCO's 5K test and the package is there.

    Args:
        image_ids: COCO's, (N,).
        caption_ids: COCO's, (M,).
    """
    *_, metrics = evaluation.metrics.values()
    if found := extended_judgements(evaluation.deep, image_ids, caption_ids):
        metrics["extended"] = found


def extended_judgements(
    deep: Deep, image_ids: NDArray[np.int64], caption_ids: NDArray[np.int64]
) -> dict[str, dict[str, float]] | None:
    """Figures by direction, in percent; None for a gallery that is not COCO's 5K test by its ids, or without the
    package.

    Args:
        deep: the first items of all queries.
        image_ids, caption_ids: as `add_extended`.
    """
    try:
        with warnings.catch_warnings():
            # That a faster JSON library is missing.
            warnings.simplefilter("ignore")
            from eccv_caption import Metrics
    except ImportError:
        return None
    judged = Metrics()
    images, captions = (set(judged.coco_gts[way]) for way in ("i2t", "t2i"))
    if set(image_ids.tolist()) != images or not captions <= set(caption_ids.tolist()):
        return None
    # Five captions an image: some have a sixth, of which the judgements know nothing.
    known = np.isin(caption_ids, list(captions))
    most = max(len(items) for side in judged.eccv_gts.values() for items in side.values())
    of_images, of_captions = deep(max(most, *KS) + int(np.count_nonzero(~known)))
    i2t = {
        image: [caption for caption in row if caption in captions]
        for image, row in zip(image_ids.tolist(), caption_ids[of_images].tolist(), strict=True)
    }
    t2i = dict(zip(caption_ids[known].tolist(), image_ids[of_captions[known]].tolist(), strict=True))
    wanted = ("eccv_r1", "eccv_rprecision", "eccv_map_at_r", "cxc_recalls")
    found = judged.compute_all_metrics(i2t, t2i, target_metrics=wanted, Ks=KS, verbose=False)
    return {way: {ours: 100.0 * float(found[name][way]) for name, ours in NAMES.items()} for way in ("i2t", "t2i")}
