"""Val RSUM of a peer by diptych's metrics."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from diptych.data.prepared import PreparedSplit
from diptych.retrieval.metrics import retrieval_metrics
from peers.pairs import Normalization
from peers.task import Task

BATCH = 128


def val_rsum(
    model: nn.Module,
    embed_images: Callable[[Tensor], Tensor],
    embed_texts: Callable[[Tensor, Tensor], Tensor],
    split: PreparedSplit,
    task: Task,
) -> float:
    """Return the sum of the six recalls on `split`.

    Args:
        model: the model; its mode is the same afterwards.
        embed_images: pixels (B, 3, S, S) float32 to (B, d).
        embed_texts: token ids and mask (B, T) int64 to (B, d).
        split: the images and captions to rank.
        task: gives the device and the precision.
    """
    training = model.training
    model.eval()
    with torch.inference_mode(), torch.autocast(task.device, torch.bfloat16, enabled=task.precision == "bf16"):
        image = _all_images(embed_images, split, task.device)
        text = _all_texts(embed_texts, split, task.device)
    model.train(training)
    return float(retrieval_metrics(image, text, split.image_of_caption)["rsum"])


def _all_images(embed: Callable[[Tensor], Tensor], split: PreparedSplit, device: str) -> Tensor:
    to_pixels = Normalization()
    batches = np.array_split(np.arange(len(split)), -(-len(split) // BATCH))
    return torch.cat([_unit(embed(to_pixels(split.pixels(batch)).to(device))) for batch in batches])


def _all_texts(embed: Callable[[Tensor, Tensor], Tensor], split: PreparedSplit, device: str) -> Tensor:
    """Embed captions in the order of their lengths, so that little padding is computed."""
    order = np.argsort(split.token_lengths, kind="stable")
    parts = []
    for batch in np.array_split(order, -(-len(order) // BATCH)):
        token_ids, mask = (torch.from_numpy(array).to(device) for array in split.tokens(batch))
        parts.append(_unit(embed(token_ids, mask.long())))
    by_length = torch.cat(parts)
    return torch.empty_like(by_length).index_copy_(0, torch.from_numpy(order), by_length)


def _unit(embeddings: Tensor) -> Tensor:
    return normalize(embeddings.float(), dim=-1).cpu()
