"""Views: drawn from seed, epoch, view and image alone, and made of the image's own pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from diptych.config import Augmentation
from diptych.training import views as making
from diptych.training.views import (
    ADJUSTMENTS,
    ASPECT_RATIOS,
    BLUR_SIGMAS,
    JITTER_PROBABILITY,
    ImageViews,
    ViewDraw,
    crop_all,
    make_view,
)

SIZE = 48
IDS = [11, 7, 2**40, -3]


def photos(count: int = len(IDS), size: int = SIZE) -> torch.Tensor:
    """Noise, so that any two places differ."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)


def views(seed: int = 0, **changes: float) -> ImageViews:
    """Of settings that change nothing but what `changes` says."""
    nothing = {"crop_scale": 1.0, "flip": 0.0, "jitter": 0.0, "grayscale": 0.0, "blur": 0.0}
    return ImageViews(Augmentation.model_validate(nothing | changes), seed)


def simclr(seed: int = 0) -> ImageViews:
    return ImageViews(Augmentation(), seed)


def draws(count: int = 400) -> list[ViewDraw]:
    return [simclr().draw(SIZE, image_id, epoch=0, view=0) for image_id in range(count)]


def test_a_view_has_the_shape_and_type_of_its_image() -> None:
    made = simclr()(photos(), IDS, epoch=0, view=0)
    assert made.shape == (len(IDS), SIZE, SIZE, 3)
    assert made.dtype == torch.uint8
    assert made.is_contiguous()


def test_an_image_has_the_same_view_alone_and_in_any_batch() -> None:
    together = simclr()(photos(), IDS, epoch=2, view=1)
    backwards = simclr()(photos().flip(0), IDS[::-1], epoch=2, view=1).flip(0)
    alone = [simclr()(photos()[i : i + 1], IDS[i : i + 1], epoch=2, view=1) for i in range(len(IDS))]
    assert torch.equal(together, backwards)
    assert torch.equal(together, torch.cat(alone))


def test_a_view_does_not_depend_on_what_was_made_before() -> None:
    used = simclr()
    used(photos(), IDS, epoch=0, view=0)
    assert torch.equal(used(photos(), IDS, epoch=1, view=0), simclr()(photos(), IDS, epoch=1, view=0))


@pytest.mark.parametrize("changed", [{"epoch": 1}, {"view": 1}, {"seed": 1}, {"image_id": 12}])
def test_another_epoch_view_seed_or_image_gives_another_view(changed: dict[str, int]) -> None:
    def view(seed: int = 0, image_id: int = 11, epoch: int = 0, view: int = 0) -> torch.Tensor:
        return simclr(seed)(photos(1), [image_id], epoch, view)

    assert not torch.equal(view(), view(**changed))


def test_the_global_randomness_is_neither_used_nor_changed() -> None:
    torch.manual_seed(1)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()
    first = simclr()(photos(), IDS, epoch=0, view=0)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert all(np.array_equal(*pair) for pair in zip(np.random.get_state(), numpy_state, strict=True))
    torch.manual_seed(2)
    assert torch.equal(simclr()(photos(), IDS, epoch=0, view=0), first)


def test_the_images_themselves_stay_as_they_are() -> None:
    pixels = photos()
    simclr()(pixels, IDS, epoch=0, view=0)
    assert torch.equal(pixels, photos())


def test_settings_that_change_nothing_give_the_very_same_pixels() -> None:
    assert torch.equal(views()(photos(), IDS, epoch=0, view=0), photos())


def test_a_certain_flip_gives_the_mirror_image() -> None:
    assert torch.equal(views(flip=1.0)(photos(), IDS, epoch=0, view=0), photos().flip(2))


def test_gray_views_have_equal_channels() -> None:
    gray = views(grayscale=1.0)(photos(), IDS, epoch=0, view=0)
    assert torch.equal(gray, gray[..., :1].expand(-1, -1, -1, 3))
    luma = (photos().double() * torch.tensor([0.299, 0.587, 0.114])).sum(dim=-1)
    assert (gray[..., 0] - luma).abs().max() < 1.1


def test_a_view_is_the_crop_that_was_drawn_in_full_size() -> None:
    """On a ramp from left to right a crop's mean is its middle, and its edges are where the box is."""
    ramp = torch.arange(SIZE, dtype=torch.uint8).mul(5).view(1, 1, SIZE, 1).expand(1, SIZE, SIZE, 3)
    cropping = views(crop_scale=0.1)
    for image_id in range(20):
        _, left, _, width = cropping.draw(SIZE, image_id, epoch=0, view=0).crop
        made = cropping(ramp, [image_id], epoch=0, view=0)[0].double()
        assert abs(float(made.mean()) - 5 * (left + (width - 1) / 2)) < 1
        assert abs(float(made[:, 0].mean()) - 5 * left) < 3
        assert abs(float(made[:, -1].mean()) - 5 * (left + width - 1)) < 3


def test_crops_lie_within_the_image_and_keep_to_their_bounds() -> None:
    boxes = np.array([draw.crop for draw in draws()])
    top, left, height, width = boxes.T
    assert (boxes[:, :2] >= 0).all()
    assert (top + height).max() == (left + width).max() == SIZE
    assert (height * width / SIZE**2).min() > 0.08 - 0.01
    assert np.quantile(height * width / SIZE**2, 0.1) < 0.2
    # Half a pixel either way.
    ratios = np.array([(width - 0.5) / (height + 0.5), (width + 0.5) / (height - 0.5)])
    assert (ratios[0] < ASPECT_RATIOS[1]).all()
    assert (ratios[1] > ASPECT_RATIOS[0]).all()


def test_what_happens_happens_as_often_as_the_settings_say() -> None:
    drawn = draws()
    rates = np.mean(
        [(draw.mirrored, bool(draw.factors), draw.gray, draw.sigma is not None) for draw in drawn], axis=0
    ).tolist()
    assert rates == pytest.approx([0.5, JITTER_PROBABILITY, 0.2, 0.5], abs=0.08)
    sigmas = [draw.sigma for draw in drawn if draw.sigma is not None]
    assert BLUR_SIGMAS[0] <= min(sigmas) < max(sigmas) <= BLUR_SIGMAS[1]


def test_colours_are_changed_in_any_order_and_as_far_as_the_strength_says() -> None:
    orders = [[index for index, _ in draw.factors] for draw in draws() if draw.factors]
    assert {tuple(order) for order in orders} >= {(0, 1, 2, 3), (3, 2, 1, 0)}
    for index, (_, neutral, reach) in enumerate(ADJUSTMENTS):
        shifts = [dict(draw.factors)[index] - neutral for draw in draws() if draw.factors]
        assert -reach <= min(shifts) < -0.9 * reach
        assert 0.9 * reach < max(shifts) <= reach


def test_colour_jitter_changes_colours_and_no_places() -> None:
    left_and_right = photos(1).clone()
    left_and_right[:, :, : SIZE // 2], left_and_right[:, :, SIZE // 2 :] = 60, 180
    jittering, changed = views(jitter=1.0), 0
    for image_id in range(10):
        made = jittering(left_and_right, [image_id], epoch=0, view=0)
        assert (made[:, :, : SIZE // 2] == made[:, :1, :1]).all()
        assert (made[:, :, SIZE // 2 :] == made[:, -1:, -1:]).all()
        changed += not torch.equal(made, left_and_right)
    assert changed > 0


def test_blur_evens_out_neighbours() -> None:
    blurred = views(blur=1.0)(photos(), IDS, epoch=0, view=0).double()
    rough, smooth = photos().double().diff(dim=2).abs().mean(), blurred.diff(dim=2).abs().mean()
    assert smooth < 0.75 * rough


def test_a_changed_setting_leaves_the_other_draws_alone() -> None:
    bare = views(crop_scale=0.08).draw(SIZE, 1, epoch=0, view=0)
    assert bare.crop == simclr().draw(SIZE, 1, epoch=0, view=0).crop


@pytest.mark.parametrize(
    "setting",
    [{"crop_scale": 0.0}, {"flip": 1.1}, {"jitter": -0.1}, {"grayscale": 2.0}, {"blur": "often"}, {"hue": 0.1}],
)
def test_impossible_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(setting))):
        Augmentation.model_validate(setting)


@pytest.mark.parametrize("changes", [{"crop_scale": 0.2}, {"flip": 0.5}, {"crop_scale": 0.4, "flip": 0.5}])
def test_all_crops_at_once_are_those_made_one_by_one(changes: dict[str, Any]) -> None:
    images = photos(32).permute(0, 3, 1, 2)
    drawn = [views(**changes).draw(SIZE, image_id, epoch=0, view=0) for image_id in range(32)]
    # In floating point: of uint8, torchvision rounds rows and columns one after the other.
    one_by_one = [make_view(image.float(), draw) for image, draw in zip(images, drawn, strict=True)]
    difference = crop_all(images, drawn).float() - torch.stack(one_by_one).round()
    assert difference.abs().max() <= 1
    assert (difference == 0).float().mean() > 0.999


@pytest.mark.parametrize("jitter", [0.0, 0.3])
def test_views_made_at_once_are_those_made_one_by_one_but_for_their_rounding(
    monkeypatch: pytest.MonkeyPatch, jitter: float
) -> None:
    made = views(crop_scale=0.4, flip=0.5, grayscale=0.5, blur=0.5, jitter=jitter)
    images, ids = photos(32), list(range(32))
    expected = made(images, ids, epoch=0, view=0)
    monkeypatch.setattr(making, "can_ask", lambda tensor: False)
    found = made(images, ids, epoch=0, view=0)
    assert found.shape == expected.shape
    assert found.dtype == torch.uint8
    assert found.is_contiguous()
    # Colours stretch what was rounded otherwise.
    assert (found.int() - expected.int()).abs().max() <= (12 if jitter else 1)
