"""Features of a split in blocks: each item is in one block, with the numbers that the tower gives for it alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tiny import make_model, open_prepared, write_prepared

from diptych.data.prepared import PreparedSplit
from diptych.model.dual_encoder import DualEncoder
from diptych.training.feature_recipes import Computing, ImageRecipe, Recipe, TextRecipe

CPU = Computing(torch.device("cpu"), "no")


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> PreparedSplit:
    return open_prepared(write_prepared(tmp_path_factory.mktemp("prepared") / "p", train=20)).split("train")


@pytest.fixture
def model() -> DualEncoder:
    return make_model(200)


def image_recipe(model: DualEncoder, split: PreparedSplit, mirrored: bool = False) -> ImageRecipe:
    return ImageRecipe(CPU, model.image_tower, [split], whole=False, lower=None, mirrored=mirrored)


def text_recipe(model: DualEncoder, split: PreparedSplit) -> TextRecipe:
    return TextRecipe(CPU, model.text_tower, [split], whole=False, lower=None)


def computed(recipe: Recipe[Any], split: PreparedSplit) -> Any:
    """Return the view of a split whose blocks are computed and written in half precision."""
    arrays = []
    for block in recipe.blocks(split):
        array = np.full(block.shape, np.nan, np.float16)
        with torch.no_grad():
            for positions, features in recipe.compute(split, block):
                array[positions] = features.numpy()
        arrays.append(array)
    return recipe.view(split, recipe.blocks(split), arrays)


@pytest.mark.parametrize("mirrored", [False, True])
def test_each_image_has_the_features_of_itself_alone(model: DualEncoder, split: PreparedSplit, mirrored: bool) -> None:
    images = computed(image_recipe(model, split, mirrored), split)
    for image in map(np.array, ([0], [7], [19])):
        pixels = torch.from_numpy(split.pixels(image))
        with torch.no_grad():
            expected = model.image_tower.features(pixels.flip(2) if mirrored else pixels)
        torch.testing.assert_close(images(image).float(), expected, rtol=2e-3, atol=2e-3)


def test_each_caption_has_the_features_of_itself_alone(model: DualEncoder, split: PreparedSplit) -> None:
    texts = computed(text_recipe(model, split), split)
    for caption in range(len(split.captions)):
        ids, mask = map(torch.from_numpy, split.tokens(np.array([caption])))
        with torch.no_grad():
            expected = model.text_tower.features(ids, mask)
        torch.testing.assert_close(texts(np.array([caption]))[0].float(), expected, rtol=2e-3, atol=2e-3)


def test_every_item_is_in_one_block(model: DualEncoder, split: PreparedSplit) -> None:
    for recipe, count in ((image_recipe(model, split), len(split)), (text_recipe(model, split), len(split.captions))):
        items = np.concatenate([block.items for block in recipe.blocks(split)])
        assert sorted(items.tolist()) == list(range(count))


def test_a_block_is_named_by_weights_and_side(model: DualEncoder, split: PreparedSplit) -> None:
    def keys(model: DualEncoder, **options: bool) -> list[str]:
        return [block.key for block in image_recipe(model, split, **options).blocks(split)]

    assert keys(model) == keys(make_model(200))
    assert not set(keys(model)) & set(keys(make_model(200, seed=1)))
    assert not set(keys(model)) & set(keys(model, mirrored=True))
