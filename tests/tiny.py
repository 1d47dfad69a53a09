"""Small real things to test with: a model of a few thousand weights, and a prepared dataset of random pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import normalize

from diptych.config import Model, Splits, Train
from diptych.data.prepared import FORMAT, Prepared
from diptych.data.tokenization import encode, learn_tokenizer, save_tokenizer, vocabulary_facts
from diptych.model.dual_encoder import DualEncoder, build_model
from diptych.model.package import FusionWeights, Preprocessing, Reranking
from diptych.model.querybank import QueryBank

COLOURS = ("red", "green", "blue", "black", "white", "yellow")
SIZE = 32

CONVNEXT = {"model_type": "convnext", "hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2}
VIT = {
    "model_type": "vit",
    "image_size": SIZE,
    "patch_size": 8,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TIMM = {"model_type": "timm_wrapper", "architecture": "test_efficientnet", "do_pooling": False}
DISTILBERT = {"model_type": "distilbert", "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}
ROBERTA = {
    "model_type": "roberta",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
ELECTRA = {**ROBERTA, "model_type": "electra", "embedding_size": 8}
"""Backbones of other kinds, as fields of their configurations."""


def model_settings(**changes: Any) -> Model:
    """Two towers from scratch, as small as they come."""
    settings = {
        "dim": 16,
        "image_tower": {"config": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]}},
        "text_tower": {
            "config": {
                "hidden_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 32,
            },
            "layers": 2,
        },
        "fusion": {"layers": 1, "heads": 2, "dropout": 0.1},
    }
    return Model.model_validate(settings | changes)


def make_model(vocabulary_size: int = 100, seed: int = 0, **changes: Any) -> DualEncoder:
    """In evaluation mode."""
    torch.manual_seed(seed)
    return build_model(model_settings(**changes), SIZE, vocabulary_size, 0.07).eval()


def pixels(count: int) -> torch.Tensor:
    """Images of noise, (B, S, S, 3) uint8."""
    return torch.randint(256, (count, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


PREPROCESSING = Preprocessing(image_size=SIZE, resize="stretch", max_tokens=16)
RERANKING = Reranking(
    top_k=4,
    i2t=FusionWeights(itm=0.25, alignment=0.5),
    t2i=FusionWeights(itm=0.5, alignment=0.25),
    bias_strength=0.75,
)


def make_querybank(dim: int = 16) -> QueryBank:
    """Eight images and twelve captions of no model."""
    generator = torch.Generator().manual_seed(0)
    image, text = (normalize(torch.randn(n, dim, generator=generator), dim=1).half() for n in (8, 12))
    return QueryBank(image, text, strength=0.75)


def train_settings(**changes: Any) -> Train:
    """Two short epochs."""
    settings = {"epochs": 2, "batch_size": 8, "captions_per_image": 2, "learning_rate": 1e-3, "checkpoint_every": 2}
    return Train.model_validate(settings | changes)


def write_prepared(folder: Path, train: int = 32, val: int = 8, test: int = 8, seed: int = 0) -> Path:
    """Images of one colour each with noise, one to three captions an image that name it; `folder`/tokenizer too."""
    generator = np.random.default_rng(seed)
    splits = ["train"] * train + ["val"] * val + ["test"] * test
    colours = generator.integers(len(COLOURS), size=len(splits))
    shades = np.array([[220, 30, 30], [30, 200, 30], [30, 30, 220], [10, 10, 10], [240, 240, 240], [230, 220, 30]])
    noise = generator.integers(-10, 11, (len(splits), SIZE, SIZE, 3))
    (folder / "images").mkdir(parents=True)
    np.save(
        folder / "images" / "images-00000.npy", (shades[colours][:, None, None] + noise).clip(0, 255).astype("uint8")
    )
    images = pd.DataFrame(
        {
            "image_id": np.arange(len(splits)) + 100,
            "split": splits,
            "shard": "images-00000",
            "row": np.arange(len(splits), dtype=np.int32),
            "file_name": [f"{i}.jpg" for i in range(len(splits))],
            "source": [f"{i}.jpg" for i in range(len(splits))],
            "sha256": [f"{i:064x}" for i in range(len(splits))],
        }
    )
    images.to_parquet(folder / "images.parquet")
    rows = [
        (100 + i, ("a {} picture", "all of this is {} and nothing else", "{}")[j].format(COLOURS[colours[i]]))
        for i in range(len(splits))
        for j in range(1 + i % 3)
    ]
    captions = pd.DataFrame(rows, columns=["image_id", "caption"])
    captions.insert(0, "caption_id", np.arange(len(rows)))
    captions.to_parquet(folder / "captions.parquet")
    save_tokenizer(learn_tokenizer(captions["caption"].tolist(), 200), folder / "tokenizer", 16)
    tokens, offsets = encode(folder / "tokenizer", captions["caption"].tolist(), 16)
    np.save(folder / "tokens.npy", tokens)
    np.save(folder / "offsets.npy", offsets)
    vocabulary_size, pad = vocabulary_facts(folder / "tokenizer")
    settings = {"format": FORMAT, "image_size": SIZE, "resize": "stretch", "decoding": "d" * 64, "max_tokens": 16}
    settings |= {"vocabulary_size": vocabulary_size, "pad_token_id": pad}
    (folder / "settings.json").write_text(json.dumps(settings))
    return folder


def open_prepared(folder: Path) -> Prepared:
    """With the splits by their usual names."""
    return Prepared(folder, Splits())
