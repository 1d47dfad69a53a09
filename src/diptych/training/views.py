"""Random views of images: crops, mirror images and colour changes.

A view is drawn from seed, epoch, image and view number alone. It is the same in one process and in many, after a
resumption, and whatever else has been drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diptych.config import Augmentation
from diptych.model.kernels import can_ask
from diptych.training.draws import Purpose, generator

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Range of width over height of a crop. This and the figures below are from Chen et al. 2020, appendix A."""
CROP_ATTEMPTS = 10
JITTER_PROBABILITY = 0.8
BLUR_SIGMAS = (0.1, 2.0)
CROPPED_AT_ONCE = 128
"""Images cropped at once. In float32 and with the weights of interpolation they take twenty times their bytes."""
BLUR_KERNEL = 0.1
"""Side of the Gaussian kernel as a share of the image's side."""

ADJUSTMENTS: tuple[tuple[str, float, float], ...] = (
    ("adjust_brightness", 1.0, 0.8),
    ("adjust_contrast", 1.0, 0.8),
    ("adjust_saturation", 1.0, 0.8),
    ("adjust_hue", 0.0, 0.2),
)
"""Adjustments of colour jitter: torchvision's function, neutral factor, and largest distance from it at strength 1."""


@dataclass(frozen=True)
class ViewDraw:
    """Random choices for a view of an image of S×S pixels."""

    crop: tuple[int, int, int, int]
    """Top, left, height and width in pixels."""
    mirrored: bool
    factors: tuple[tuple[int, float], ...]
    """Indices into ADJUSTMENTS in the order of use, each with its factor; empty: colours are unchanged."""
    gray: bool
    sigma: float | None
    """Standard deviation of the blur in pixels; None: no blur."""

    @property
    def changes_colours(self) -> bool:
        """True if the view differs from a crop or its mirror image."""
        return bool(self.factors) or self.gray or self.sigma is not None


class ImageViews:
    """Random views of images.

    The draws are made on the CPU, so they are the same on every device. Resizing and colours round differently there.

    Args:
        settings: kinds and strengths of the changes.
        seed: seed of the run.
    """

    def __init__(self, settings: Augmentation, seed: int) -> None:
        self.settings = settings
        self.seed = seed

    def __call__(self, pixels: Tensor, image_ids: Sequence[int], epoch: int, view: int) -> Tensor:
        """Return one view of each image.

        Args:
            pixels: (B, S, S, 3) uint8 RGB, on any device.
            image_ids: ids in the dataset (B).
            epoch: number of the epoch, from 0.
            view: number of the view of the image in this epoch, from 0.

        Returns:
            (B, S, S, 3) uint8 RGB on the same device.
        """
        draws = [self.draw(pixels.shape[1], image_id, epoch, view) for image_id in image_ids]
        images = pixels.permute(0, 3, 1, 2)
        if can_ask(pixels):
            views = torch.stack([make_view(image, draw) for image, draw in zip(images, draws, strict=True)])
        else:
            parts = [slice(first, first + CROPPED_AT_ONCE) for first in range(0, len(draws), CROPPED_AT_ONCE)]
            views = torch.cat([crop_all(images[part], draws[part]) for part in parts])
            for i, draw in enumerate(draws):
                if draw.changes_colours:
                    views[i] = change_colours(views[i], draw)
        return views.permute(0, 2, 3, 1).contiguous()

    def draw(self, size: int, image_id: int, epoch: int, view: int) -> ViewDraw:
        """Return the random choices for a view of an image of `size`×`size` pixels."""
        # COCO allows negative ids; numpy seeds must not be negative.
        key = (epoch, view, int(image_id) % 2**64)
        return draw_view(self.settings, size, generator(self.seed, Purpose.VIEW, *key))


def draw_view(settings: Augmentation, size: int, random: np.random.Generator) -> ViewDraw:
    """Draw a view of an image of `size`×`size` pixels.

    Everything is drawn, needed or not, so a changed setting changes its own effect alone.
    """
    crop = _draw_crop(settings.crop_scale, size, random)
    mirrored, jittered, gray, blurred = random.random(4) < (
        settings.flip,
        JITTER_PROBABILITY if settings.jitter else 0.0,
        settings.grayscale,
        settings.blur,
    )
    order = random.permutation(len(ADJUSTMENTS)).tolist()
    shifts = random.uniform(-settings.jitter, settings.jitter, len(ADJUSTMENTS)).tolist()
    sigma = random.uniform(*BLUR_SIGMAS)
    return ViewDraw(
        crop=crop,
        mirrored=bool(mirrored),
        factors=tuple((index, _factor(index, shifts[index])) for index in order) if jittered else (),
        gray=bool(gray),
        sigma=sigma if blurred else None,
    )


def make_view(image: Tensor, draw: ViewDraw) -> Tensor:
    """Return the view of `image` (3, S, S) uint8 that `draw` describes, in the same shape."""
    from torchvision.transforms.v2 import functional as transforms

    size = list(image.shape[-2:])
    image = transforms.resized_crop(image, *draw.crop, size=size, antialias=True)
    if draw.mirrored:
        image = transforms.horizontal_flip(image)
    return change_colours(image, draw)


def crop_all(images: Tensor, draws: Sequence[ViewDraw]) -> Tensor:
    """Return crops and mirror images of `images` (B, 3, S, S) uint8, all at once, in the same shape.

    On a GPU, launching the operations one by one takes longer than a training step. No crop is larger than its view, so
    no antialiasing is needed. Rounding differs from that of `make_view`.
    """
    size = images.shape[-1]
    crops = torch.tensor([[*draw.crop, draw.mirrored] for draw in draws], dtype=torch.float32)
    top, left, height, width, mirrored = crops.to(images.device, non_blocking=True).unbind(dim=1)
    rows, columns = _interpolation(top, height, size), _interpolation(left, width, size)
    columns = torch.where(mirrored.bool()[:, None, None], columns.flip(1), columns)
    views = rows[:, None] @ images.float() @ columns[:, None].mT
    return views.round().clamp(0, 255).to(torch.uint8)


def _interpolation(first: Tensor, length: Tensor, size: int) -> Tensor:
    """Return bilinear weights (B, `size`, `size`) of image pixels for the pixels of a view.

    The view covers `length` (B,) pixels of the image, from `first` (B,) on.
    """
    at = torch.arange(size, device=first.device)
    within = (at + 0.5) * (length[:, None] / size) - 0.5
    source = first[:, None] + torch.minimum(within.clamp(min=0), length[:, None] - 1)
    return (1 - (source[:, :, None] - at).abs()).clamp(min=0)


def change_colours(image: Tensor, draw: ViewDraw) -> Tensor:
    """Return `image` (3, S, S) uint8 with the changes of colours and sharpness in `draw`."""
    from torchvision.transforms.v2 import functional as transforms

    size = image.shape[-1]
    for index, factor in draw.factors:
        image = getattr(transforms, ADJUSTMENTS[index][0])(image, factor)
    if draw.gray:
        image = transforms.rgb_to_grayscale(image, num_output_channels=3)
    if draw.sigma is not None:
        kernel = 2 * round(BLUR_KERNEL * size / 2) + 1
        image = transforms.gaussian_blur(image, [kernel, kernel], [draw.sigma, draw.sigma])
    return image


def _draw_crop(smallest: float, size: int, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Return the first of several random boxes that fits into the image, else the whole image (Szegedy et al. 2015)."""
    areas = random.uniform(smallest, 1.0, CROP_ATTEMPTS) * size**2
    ratios = np.exp(random.uniform(math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1]), CROP_ATTEMPTS))
    offset = random.random(2)
    for area, ratio in zip(areas.tolist(), ratios.tolist(), strict=True):
        height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < height <= size and 0 < width <= size:
            top, left = (int(share * (size - side + 1)) for share, side in zip(offset, (height, width), strict=True))
            return top, left, height, width
    return 0, 0, size, size


def _factor(index: int, shift: float) -> float:
    """Return the factor of an adjustment for a `shift` from -1 to 1."""
    _, neutral, reach = ADJUSTMENTS[index]
    return neutral + reach * shift
