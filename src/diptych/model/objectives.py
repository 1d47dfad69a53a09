"""What the model is trained to do: tell which captions and images belong together.

A batch holds B distinct images and C captions of them, several an image where there are several; `image_of_caption`
(C,) says which caption belongs to which image. Captions of the same image are never negatives of it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from diptych.model.dual_encoder import DualEncoder, ImageFeatures, TextFeatures
from diptych.model.gathering import gather_rows, rank, row_counts, world_size


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

    text_to_image = logit_scale * text @ all_images.T
    image_to_text = logit_scale * (image @ all_texts.T)[image_of_caption]
    siblings = all_owners == owner.unsqueeze(1)
    siblings[torch.arange(len(place)), place] = False
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
    left_out[torch.arange(len(partner)), partner] = False
    similarity = similarity.masked_fill(left_out, float("-inf"))
    return cross_entropy(similarity, partner, reduction="sum") * world_size() / similarity.shape[1]


def matching_loss(model: DualEncoder, images: ImageFeatures, texts: TextFeatures, image_of_caption: Tensor) -> Tensor:
    """Image-text matching with hard negatives, after ALBEF (Li et al. 2021, section 3.2).

    One caption an image, drawn at random, makes the positive pairs. Each of their images meets a caption of another
    image, and each of their captions another image, both drawn with the softmax of the contrastive similarities as
    probabilities, so that likely confusions are met most often. Two thirds of the pairs are thus negatives.

    Returns:
        The mean binary cross-entropy of the match logits, a scalar; zero if the batch has one image only.
    """
    count = len(images.grid)
    if count < 2:
        return images.grid.sum() * 0
    with torch.no_grad():
        logits = model.logit_scale * images.pooled @ texts.pooled.T
        own = image_of_caption == torch.arange(count, device=logits.device).unsqueeze(1)
        positive = own.float().multinomial(1).squeeze(1)
        negative_text = logits.masked_fill(own, float("-inf")).softmax(dim=1).multinomial(1).squeeze(1)
        captions_images = logits.T[positive].masked_fill(own.T[positive], float("-inf"))
        negative_image = captions_images.softmax(dim=1).multinomial(1).squeeze(1)
    every = torch.arange(count, device=logits.device)
    image_index = torch.cat([every, every, negative_image])
    text_index = torch.cat([positive, negative_text, positive])
    score = model.fuse(images.grid[image_index], texts.tokens[text_index], texts.mask[text_index]).score
    target = torch.cat([torch.ones(count), torch.zeros(2 * count)]).to(score.device)
    return binary_cross_entropy_with_logits(score, target)
