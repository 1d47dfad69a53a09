"""Training objectives: contrastive loss, image-text matching (ITM), token alignment and SimCLR.

A process has B distinct images of a batch and C captions of them; `image_of_caption` (C,) is the index of each
caption's image. An image may have several captions. Captions of the same image are never negatives of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, pad

from diptych.model.dual_encoder import DualEncoder, ImageFeatures, TextFeatures
from diptych.model.gathering import Shares, exchange_shares, gather_rows, rank, world_size
from diptych.model.kernels import can_ask


def contrastive_loss(
    image: Tensor,
    text: Tensor,
    image_of_caption: Tensor,
    logit_scale: Tensor,
    shares: Shares | None = None,
    smoothing: float = 0.0,
) -> Tensor:
    """Compute the symmetric image-text contrastive loss over the batches of all processes.

    The loss is InfoNCE as in CLIP (Radford et al. 2021, figure 3), with each of an image's captions a positive of its
    own. A caption is compared with the captions of other images; its siblings are left out of the denominator. Targets
    are smoothed as in Szegedy et al., CVPR 2016, section 7.

    Args:
        image: (B, d) float32, of length one; this process's images.
        text: (C, d) float32, of length one; this process's captions.
        image_of_caption: (C,) int64, indices into `image`.
        logit_scale: scalar.
        shares: the sizes of the processes' shares; None: they are exchanged here.
        smoothing: share of each target that is spread evenly over all that the item is compared with.

    Returns:
        A scalar whose mean over the processes is the mean over the captions of all of them.
    """
    shares = shares or exchange_shares(len(image), len(text), 0, text.device)
    all_images, all_texts = gather_rows(image, shares.images), gather_rows(text, shares.captions)
    owner = image_of_caption + _first_row(shares.images)
    all_owners = gather_rows(owner, shares.captions)
    index = torch.arange(len(text), device=text.device) + _first_row(shares.captions)

    # In half precision cosines near one, times a large scale, could no longer be told apart.
    with torch.autocast(image.device.type, enabled=False):
        text_to_image = logit_scale * text @ all_images.T
        # The gradient of an index adds up in any order where several threads do it; that of index_select does not.
        image_to_text = logit_scale * (image @ all_texts.T).index_select(0, image_of_caption)
    siblings = all_owners == owner.unsqueeze(1)
    siblings[torch.arange(len(index), device=index.device), index] = False
    total = _cross_entropy(text_to_image, owner, smoothing) + _cross_entropy(image_to_text, index, smoothing, siblings)
    return total / 2 * world_size() / len(all_texts)


def _cross_entropy(logits: Tensor, target: Tensor, smoothing: float, left_out: Tensor | None = None) -> Tensor:
    """Return the sum over the rows of `logits` (R, n) of the cross entropy with the smoothed index `target` (R,).

    What is `left_out`, bool (R, n), is no class of its row.
    """
    if left_out is not None:
        logits = logits.masked_fill(left_out, float("-inf"))
    hard = cross_entropy(logits, target, reduction="sum")
    if not smoothing:
        return hard
    finite = logits if left_out is None else logits.masked_fill(left_out, 0.0)
    classes = logits.shape[1] if left_out is None else (~left_out).sum(dim=1)
    spread = (logits.logsumexp(dim=1) - finite.sum(dim=1) / classes).sum()
    return (1 - smoothing) * hard + smoothing * spread


def nt_xent_loss(
    first: Tensor,
    second: Tensor,
    temperature: float,
    owner: Tensor | None = None,
    counts: Sequence[int] | None = None,
) -> Tensor:
    """Compute NT-Xent, in which each view finds the other view of the same item among all processes' views.

    Chen et al. 2020 (SimCLR), equation 1 and algorithm 1. One thing is added: views of different captions of the same
    image are left out of the denominator.

    Args:
        first: (B, d) float32, of length one; a view of each of this process's images or captions.
        second: (B, d) float32, of length one; another view of each.
        temperature: the divisor of the cosines.
        owner: (B,) int64, the index of the image that each row belongs to; rows of one image are never negatives of
            each other. None: each row is an image of its own.
        counts: the number of rows of each process; None: they are exchanged here.

    Returns:
        A scalar whose mean over the processes is the mean over the views of all of them; zero if there is one image.
    """
    counts = counts or exchange_shares(len(first), 0, 0, first.device).images
    if owner is None:
        owner = torch.arange(len(first), device=first.device)
    owner = owner * world_size() + rank()
    all_first, all_second, all_owners = (gather_rows(rows, counts) for rows in (first, second, owner))
    index = torch.arange(len(first), device=first.device) + _first_row(counts)
    partner = torch.cat([index + len(all_first), index])

    # In half precision cosines near one, divided by a small temperature, could no longer be told apart.
    with torch.autocast(first.device.type, enabled=False):
        similarity = torch.cat([first, second]) @ torch.cat([all_first, all_second]).T / temperature
    left_out = (all_owners == owner.unsqueeze(1)).repeat(2, 2)
    left_out[torch.arange(len(partner), device=partner.device), partner] = False
    similarity = similarity.masked_fill(left_out, float("-inf"))
    return cross_entropy(similarity, partner, reduction="sum") * world_size() / similarity.shape[1]


class Pairs(NamedTuple):
    """Pairs that train the fusion, of B images and C captions of all processes."""

    grid: Tensor
    """(B, N, d)."""
    tokens: Tensor
    """(C, T, d)."""
    mask: Tensor
    """(C, T) bool."""
    positive: Tensor
    """(B,) int64, a caption of each image."""
    negative_text: Tensor
    """(B,) int64, a caption of another image, for each image."""
    negative_image: Tensor
    """(B,) int64, another image, for each of the captions in `positive`."""


def draw_hard_negatives(
    model: DualEncoder,
    images: ImageFeatures,
    texts: TextFeatures,
    image_of_caption: Tensor,
    uniforms: Tensor,
    shares: Shares | None = None,
) -> Pairs:
    """Draw positive pairs and hard negatives among all processes' images and captions.

    The method is ALBEF's (Li et al. 2021, section 3.2). One caption of each image, drawn at random, makes a positive
    pair. The image also gets a caption of another image, and the caption another image. Both are drawn with the softmax
    of the contrastive similarities as probabilities, so that likely confusions come most often. Every process draws the
    pairs that one process would draw.

    Args:
        model: gives the temperature.
        images: features of this process's images.
        texts: features of this process's captions.
        image_of_caption: (C,) int64, indices into `images`.
        uniforms: (3, images of all processes) float64 in [0, 1), the random numbers to draw with; every process has
            the same ones.
        shares: the sizes of the processes' shares; None: they are exchanged here.
    """
    grid, image, tokens, mask, text, owner = _gather_features(images, texts, image_of_caption, shares)
    with torch.no_grad():
        # Captions in the order of their images, however the processes share them.
        order = owner.argsort(stable=True)
        logits = (model.logit_scale * image @ text[order].T).double()
        is_positive = owner[order] == torch.arange(len(grid), device=owner.device).unsqueeze(1)
        positive = _draw(is_positive.double(), uniforms[0])
        negative_text = _draw(logits.masked_fill(is_positive, float("-inf")).softmax(dim=1), uniforms[1])
        captions_images = logits.T[positive].masked_fill(is_positive.T[positive], float("-inf"))
        negative_image = _draw(captions_images.softmax(dim=1), uniforms[2])
    return Pairs(grid, tokens, mask, order[positive], order[negative_text], negative_image)


def itm_loss(model: DualEncoder, pairs: Pairs, share: float = 1.0) -> Tensor:
    """Compute the image-text matching loss: the fusion separates positive pairs from those with hard negatives.

    Two thirds of the pairs are negative. Every process scores its part of the pairs.

    Args:
        model: gives the fusion.
        pairs: what `draw_hard_negatives` returns.
        share: of the images, the first ones, whose pairs are scored; at least two, and one for each process.

    Returns:
        A scalar whose mean over the processes is the mean binary cross-entropy of the ITM logits of all these pairs;
        zero if there is one image only.
    """
    count = min(len(pairs.grid), max(2, world_size(), round(share * len(pairs.grid))))
    if count < 2:
        return pairs.grid.sum() * 0
    every = torch.arange(count, device=pairs.grid.device)
    positive, negative_text, negative_image = (
        index[:count] for index in (pairs.positive, pairs.negative_text, pairs.negative_image)
    )
    image_index = torch.cat([every, every, negative_image])
    text_index = torch.cat([positive, negative_text, positive])
    target = (torch.arange(3 * count, device=every.device) < count).float()
    part = torch.arange(rank(), len(target), world_size(), device=every.device)
    logits = _itm_logits(model, pairs, image_index[part], text_index[part])
    total = binary_cross_entropy_with_logits(logits, target[part], reduction="sum")
    return total * world_size() / len(target)


def _itm_logits(model: DualEncoder, pairs: Pairs, image: Tensor, text: Tensor) -> Tensor:
    """Return the logits (P,) of the pairs of `image` (P,) and `text` (P,), indices into `pairs`."""
    grid, tokens, mask = pairs.grid, pairs.tokens, pairs.mask
    if can_ask(mask):
        # Only the images and captions that were drawn are computed, padded to the longest of these captions.
        images, image = image.unique(return_inverse=True)
        texts, text = text.unique(return_inverse=True)
        within = slice(int(mask[texts].sum(dim=1).max()))
        grid, tokens, mask = grid[images], tokens[texts, within], mask[texts, within]
    itm: Tensor = model.fusion(grid, tokens, mask, image, text).itm
    return itm


def alignment_loss(model: DualEncoder, pairs: Pairs) -> Tensor:
    """Compute the symmetric contrastive loss of the token-alignment scores of all images and their positive captions.

    Every process scores its share of the images against all captions, and its share of the captions against all images.

    Returns:
        A scalar whose mean over the processes is the mean over all images and captions; zero if there is one image, or
        no token alignment in the model's fusion.
    """
    if not model.aligns:
        return pairs.grid.sum() * 0
    count = len(pairs.grid)
    tokens, mask = pairs.tokens[pairs.positive], pairs.mask[pairs.positive]
    share = torch.arange(rank(), count, world_size(), device=pairs.grid.device)
    image_to_text = model.align(pairs.grid[share], tokens, mask)
    text_to_image = image_to_text.T if world_size() == 1 else model.align(pairs.grid, tokens[share], mask[share]).T
    total = cross_entropy(image_to_text, share, reduction="sum") + cross_entropy(text_to_image, share, reduction="sum")
    return total * world_size() / (2 * count)


def _gather_features(
    images: ImageFeatures, texts: TextFeatures, image_of_caption: Tensor, shares: Shares | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return grids, pooled images, tokens, mask, pooled texts and owners of all processes, padded to the longest."""
    shares = shares or exchange_shares(len(images.grid), len(texts.mask), texts.mask.shape[1], texts.mask.device)
    missing = max(shares.tokens) - texts.mask.shape[1]
    return (
        gather_rows(images.grid, shares.images),
        gather_rows(images.pooled.detach(), shares.images),
        gather_rows(pad(texts.tokens, (0, 0, 0, missing)), shares.captions),
        gather_rows(pad(texts.mask, (0, missing)).byte(), shares.captions).bool(),
        gather_rows(texts.pooled.detach(), shares.captions),
        gather_rows(image_of_caption + _first_row(shares.images), shares.captions),
    )


def _first_row(counts: Sequence[int]) -> int:
    """Return the index of this process's first row among the rows of all processes."""
    return sum(counts[: rank()])


def _draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw an index (R,) int64 for each row of `weights` (R, n) float64, its probabilities, by `uniforms` (R,).

    The distribution function is inverted, since the draws of `multinomial` differ between devices. Weights that are not
    numbers give index 0: the loss of such features is not a number either, and is reported.
    """
    cumulative = weights.cumsum(dim=1)
    below = cumulative <= cumulative[:, -1:] * uniforms.to(weights).unsqueeze(1)
    return below.sum(dim=1).clamp(max=weights.shape[1] - 1)
