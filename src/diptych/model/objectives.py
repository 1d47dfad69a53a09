"""What the model is trained to do: tell which captions and images belong together.

A batch holds B distinct images and C captions of them, several an image where there are several; `image_of_caption`
(C,) says which caption belongs to which image. Captions of the same image are never negatives of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, pad

from diptych.model.dual_encoder import DualEncoder, ImageFeatures, TextFeatures
from diptych.model.gathering import gather_rows, rank, row_counts, world_size
from diptych.model.kernels import can_ask


def contrastive_loss(image: Tensor, text: Tensor, image_of_caption: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric image-text contrastive loss over the batches of all processes.

    InfoNCE as in CLIP (Radford et al. 2021, figure 3), with each of an image's captions a positive of its own: it is
    compared with the captions of other images, and its siblings are left out of the denominator.

    Args:
        image: (B, d) float32, of length one; this process's images.
        text: (C, d) float32, of length one; this process's captions.
        image_of_caption: (C,) int64, indices into `image`.
        logit_scale: scalar.

    Returns:
        A scalar whose mean over the processes is the mean over the captions of all of them.
    """
    all_images, all_texts = gather_rows(image), gather_rows(text)
    first_image = sum(row_counts(len(image), image.device)[: rank()])
    first_caption = sum(row_counts(len(text), text.device)[: rank()])
    owner = image_of_caption + first_image
    all_owners = gather_rows(owner)
    place = torch.arange(len(text), device=text.device) + first_caption

    # In half precision cosines near one, times a large scale, would be told apart no more.
    with torch.autocast(image.device.type, enabled=False):
        text_to_image = logit_scale * text @ all_images.T
        image_to_text = logit_scale * (image @ all_texts.T)[image_of_caption]
    siblings = all_owners == owner.unsqueeze(1)
    siblings[torch.arange(len(place), device=place.device), place] = False
    image_to_text = image_to_text.masked_fill(siblings, float("-inf"))
    total = cross_entropy(text_to_image, owner, reduction="sum") + cross_entropy(image_to_text, place, reduction="sum")
    return total / 2 * world_size() / len(all_texts)


def nt_xent_loss(first: Tensor, second: Tensor, temperature: float, owner: Tensor | None = None) -> Tensor:
    """NT-Xent: each view is to find the other view of the same thing among the views of all processes' batches.

    Chen et al. 2020 (SimCLR), equation 1 and algorithm 1, with one thing added: views of different captions of the same
    image are left out of the denominator.

    Args:
        first, second: (B, d) float32, of length one; two views of this process's images or captions.
        temperature: what the cosines are divided by.
        owner: (B,) int64, which of this process's images each row belongs to; rows with the same one are never
            negatives of each other. None: each row stands for itself.

    Returns:
        A scalar whose mean over the processes is the mean over the views of all of them; zero if there is one image.
    """
    if owner is None:
        owner = torch.arange(len(first), device=first.device)
    owner = owner * world_size() + rank()
    all_first, all_second, all_owners = gather_rows(first), gather_rows(second), gather_rows(owner)
    place = torch.arange(len(first), device=first.device) + sum(row_counts(len(first), first.device)[: rank()])
    partner = torch.cat([place + len(all_first), place])

    # In half precision cosines near one, divided by a small temperature, would be told apart no more.
    with torch.autocast(first.device.type, enabled=False):
        similarity = torch.cat([first, second]) @ torch.cat([all_first, all_second]).T / temperature
    left_out = (all_owners == owner.unsqueeze(1)).repeat(2, 2)
    left_out[torch.arange(len(partner), device=partner.device), partner] = False
    similarity = similarity.masked_fill(left_out, float("-inf"))
    return cross_entropy(similarity, partner, reduction="sum") * world_size() / similarity.shape[1]


class Pairs(NamedTuple):
    """What the fusion is trained on: B images and C captions of all processes, and how they meet."""

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


def draw_pairs(
    model: DualEncoder, images: ImageFeatures, texts: TextFeatures, image_of_caption: Tensor, uniforms: Tensor
) -> Pairs:
    """The images and captions of all processes in pairs, after ALBEF (Li et al. 2021, section 3.2).

    One caption an image, drawn at random, makes the positive pairs. Each of their images meets a caption of another
    image, and each of their captions another image, both drawn with the softmax of the contrastive similarities as
    probabilities, so that likely confusions are met most often. Every process draws the pairs that one process would.

    Args:
        uniforms: (3, B) float64 in [0, 1), what is drawn by: the same on every process.
    """
    grid, image, tokens, mask, text, owner = _from_all_processes(images, texts, image_of_caption)
    with torch.no_grad():
        # Captions in the order of their images, however the processes share them.
        order = owner.argsort(stable=True)
        logits = (model.logit_scale * image @ text[order].T).double()
        own = owner[order] == torch.arange(len(grid), device=owner.device).unsqueeze(1)
        positive = _draw(own.double(), uniforms[0])
        negative_text = _draw(logits.masked_fill(own, float("-inf")).softmax(dim=1), uniforms[1])
        captions_images = logits.T[positive].masked_fill(own.T[positive], float("-inf"))
        negative_image = _draw(captions_images.softmax(dim=1), uniforms[2])
    return Pairs(grid, tokens, mask, order[positive], order[negative_text], negative_image)


def matching_loss(model: DualEncoder, pairs: Pairs, share: float = 1.0) -> Tensor:
    """Image-text matching: the fusion tells the positive pairs from those with hard negatives, two thirds of all.

    Every process judges its part of the pairs.

    Args:
        share: of the images, the first ones, whose pairs are judged; two at least, and one for each process.

    Returns:
        A scalar whose mean over the processes is the mean binary cross-entropy of the match logits of all these pairs;
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
    image_of_pair, text_of_pair = image_index[part], text_index[part]
    grid, tokens, mask = pairs.grid, pairs.tokens, pairs.mask
    if can_ask(mask):
        # Of the images and captions those that were drawn alone, and these as long as the longest of them.
        images, image_of_pair = image_of_pair.unique(return_inverse=True)
        texts, text_of_pair = text_of_pair.unique(return_inverse=True)
        within = slice(int(mask[texts].sum(dim=1).max()))
        grid, tokens, mask = grid[images], tokens[texts, within], mask[texts, within]
    score = model.fusion(grid, tokens, mask, image_of_pair, text_of_pair).score
    total = binary_cross_entropy_with_logits(score, target[part], reduction="sum")
    return total * world_size() / len(target)


def alignment_loss(model: DualEncoder, pairs: Pairs) -> Tensor:
    """Symmetric contrastive loss of the tokens' alignment: each image among the positive captions, and the other way.

    Every process judges its share of the images, and of the captions.

    Returns:
        A scalar whose mean over the processes is the mean over all images and captions; zero if there is one image, or
        no alignment in the model's fusion.
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


def _from_all_processes(
    images: ImageFeatures, texts: TextFeatures, image_of_caption: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Grid, pooled images, tokens, mask, pooled texts and owners of all processes, tokens padded to the longest."""
    device = image_of_caption.device
    missing = max(row_counts(texts.mask.shape[1], device)) - texts.mask.shape[1]
    owner = image_of_caption + sum(row_counts(len(images.grid), device)[: rank()])
    return (
        gather_rows(images.grid),
        gather_rows(images.pooled.detach()),
        gather_rows(pad(texts.tokens, (0, 0, 0, missing))),
        gather_rows(pad(texts.mask, (0, missing)).byte()).bool(),
        gather_rows(texts.pooled.detach()),
        gather_rows(owner),
    )


def _draw(weights: Tensor, uniforms: Tensor) -> Tensor:
    """An index for each row of `weights` (R, n) float64, with these probabilities, by `uniforms` (R,); int64 (R,).

    By the inverse of the distribution function and not by `multinomial`, whose draws differ between devices. Weights
    that are not numbers give index 0: the loss of such features says so itself.
    """
    cumulative = weights.cumsum(dim=1)
    below = cumulative <= cumulative[:, -1:] * uniforms.to(weights).unsqueeze(1)
    return below.sum(dim=1).clamp(max=weights.shape[1] - 1)
