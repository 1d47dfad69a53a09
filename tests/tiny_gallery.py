"""A split and a model small enough to follow by hand, with the interfaces of the real ones."""

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from diptych.data.inputs import Inputs
from diptych.model.dual_encoder import ImageFeatures, TextFeatures
from diptych.model.fusion import Fused
from diptych.retrieval.embedding import embed_querybank


class TinySplit:
    """What embed_split and the report use of a PreparedSplit: random pictures, and captions of ragged counts."""

    def __init__(self, images=7, seed=0, max_captions=4):
        random = np.random.default_rng(seed)
        counts = random.integers(1, max_captions + 1, images)
        self.image_of_caption = np.repeat(np.arange(images), counts)
        self.caption_ranges = np.concatenate([[0], counts.cumsum()])
        self.token_lengths = random.integers(2, 9, counts.sum())
        self.captions = [f"caption {j} of image {i}" for j, i in enumerate(self.image_of_caption)]
        self.sources = [f"{i:012d}.jpg" for i in range(images)]
        self.image_ids = np.arange(images)
        self._pixels = random.integers(0, 256, (images, 8, 8, 3), dtype=np.uint8)
        self._tokens = [random.integers(1, 50, length) for length in self.token_lengths]

    def __len__(self):
        return len(self.image_ids)

    def pixels(self, indices):
        return self._pixels[indices]

    def tokens(self, indices):
        longest = max(len(self._tokens[j]) for j in indices)
        token_ids = np.zeros((len(indices), longest), dtype=np.int64)
        for row, j in enumerate(indices):
            token_ids[row, : len(self._tokens[j])] = self._tokens[j]
        return token_ids, token_ids > 0


class TinyModel(torch.nn.Module):
    """Four grid tokens an image, a table of token states, and a match score by the means of both."""

    def __init__(self, dim=6):
        super().__init__()
        self.image = torch.nn.Linear(48, dim)
        self.text = torch.nn.Embedding(50, dim)
        self.match = torch.nn.Linear(dim, 1)
        self.dropout = torch.nn.Dropout(0.5)
        self.logit_scale = torch.tensor(10.0)
        self.fused_pairs = self.aligned_pairs = 0

    def encode_images(self, pixels):
        quarters = pixels.float().reshape(len(pixels), 4, 48) / 255 - 0.5
        grid = self.dropout(self.image(quarters))
        return ImageFeatures(grid, normalize(grid.mean(dim=1).float(), dim=-1))

    def encode_texts(self, token_ids, mask, groups=None):
        tokens = self.dropout(self.text(token_ids))
        return TextFeatures(tokens, mask, normalize(_mean(tokens, mask).float(), dim=-1))

    aligns = True

    def fuse(self, grid, tokens, mask, image=None, text=None):
        fused = self.fusion(grid, tokens, mask, image, text)
        return fused._replace(alignment=self.aligned(grid, tokens, mask, image, text))

    def fusion(self, grid, tokens, mask, image=None, text=None):
        self.fused_pairs += len(grid if image is None else image)
        joint = self._joint(grid, tokens, mask, image, text)
        return Fused(joint, self.match(joint).squeeze(-1))

    def aligned(self, grid, tokens, mask, image=None, text=None):
        self.aligned_pairs += len(grid if image is None else image)
        return self._joint(grid, tokens, mask, image, text).amax(dim=1)

    def _joint(self, grid, tokens, mask, image, text):
        grid = grid if image is None else grid[image]
        tokens, mask = (tokens, mask) if text is None else (tokens[text], mask[text])
        return grid.mean(dim=1) * _mean(tokens, mask)


def _mean(tokens, mask):
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weights).sum(dim=1) / weights.sum(dim=1)


@pytest.fixture
def querybank(model, make_split):
    return embed_querybank(
        model, Inputs(make_split(images=20, seed=7)), seed=0, batch_size=8, device=torch.device("cpu")
    )


@pytest.fixture
def split():
    return TinySplit()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyModel().train()


@pytest.fixture
def make_split():
    return TinySplit
