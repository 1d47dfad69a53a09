"""Highlights: what brought the score is what is lost without it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import PREPROCESSING, make_model, pixels
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.normalizers import NFKC
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from diptych.data.tokenization import learn_tokenizer, save_tokenizer
from diptych.model.dual_encoder import DualEncoder
from diptych.report.highlights import Effects, _words, effects, highlighter
from diptych.retrieval.embedding import Embedded
from diptych.retrieval.reranking import Directed, Weights

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> DualEncoder:
    made = make_model(fusion={"layers": 1, "heads": 2, "direction": "both", "dropout": 0.5})
    return made.train()


@pytest.fixture(scope="module")
def embedded(model: DualEncoder) -> Embedded:
    """Two images, and captions of five, one and three tokens."""
    random = torch.Generator().manual_seed(0)
    model.eval()
    with torch.no_grad():
        images = model.encode_images(pixels(2))
    model.train()
    tokens = torch.randn(9, 16, generator=random)
    text = torch.nn.functional.normalize(torch.randn(3, 16, generator=random), dim=1)
    return Embedded(images.grid, tokens, torch.tensor([0, 5, 6, 9]), images.pooled, text, np.array([0, 0, 1]))


@pytest.mark.parametrize("weights", [Weights(0.7, 0.0), Weights(0.0, 2.0), Weights(0.5, 1.5)])
def test_each_effect_is_what_the_pair_loses_by_itself(model: DualEncoder, embedded: Embedded, weights: Weights) -> None:
    found = effects(model, embedded, 1, 0, weights, CPU)
    assert model.training
    model.eval()

    def score(grid: Tensor, tokens: Tensor) -> float:
        with torch.no_grad():
            fused = model.fuse(grid[None], tokens[None], torch.ones(1, len(tokens), dtype=torch.bool))
        assert fused.alignment is not None
        return float(weights.itm * fused.itm + weights.alignment * fused.alignment)

    grid, tokens = embedded.grid[1], embedded.tokens[:5]
    whole = score(grid, tokens)
    for token in range(5):
        less = score(grid, torch.cat([tokens[:token], tokens[token + 1 :]]))
        assert found.tokens[token].item() == pytest.approx(whole - less, abs=1e-4)
    assert len(found.grid) == len(grid)
    for place in range(len(grid)):
        covered = grid.clone()
        covered[place] = grid.mean(dim=0)
        assert found.grid[place].item() == pytest.approx(whole - score(covered, tokens), abs=1e-4)
    model.train()


def test_a_caption_of_one_token_loses_nothing(model: DualEncoder, embedded: Embedded) -> None:
    assert effects(model, embedded, 0, 1, Weights(1.0, 1.0), CPU).tokens.tolist() == [0.0]


def retriever_of(model: Any, weights: Weights, tokenizer: Any = None) -> Any:
    both = Directed(t2i=weights)
    return SimpleNamespace(model=model, weights=both, tokenizer=tokenizer, preprocessing=PREPROCESSING, device=CPU)


def test_a_fusion_without_weight_highlights_nothing(model: DualEncoder, embedded: Embedded) -> None:
    assert highlighter(retriever_of(model, Weights()), embedded, []) is None


def test_pieces_of_a_word_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = ["A dog, running  home!", "dog dog"]
    save_tokenizer(learn_tokenizer(captions, 30), tmp_path, 16)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    words = tokenizer(captions[0]).word_ids()
    by_word: dict[int | None, float] = {None: 9.0, 0: -1.0, 1: 2.0, 2: 0.5, 3: 4.0}
    tokens = torch.tensor([by_word.get(word, 0.0) / words.count(word) for word in words])
    places = torch.tensor([9.0, 1.0, -2.0, 0.0, 4.0])
    found = Effects(tokens, places)
    model: Any = SimpleNamespace(image_tower=SimpleNamespace(backbone=SimpleNamespace(config=SimpleNamespace())))
    monkeypatch.setattr("diptych.report.highlights.effects", lambda *given: found)
    nothing: Any = None
    highlight = highlighter(retriever_of(model, Weights(1.0), tokenizer), nothing, captions)
    assert highlight is not None
    shown = highlight(0, 0)
    assert "".join(text for text, _ in shown.words) == captions[0]
    strengths = {text: strength for text, strength in shown.words if strength}
    assert strengths == pytest.approx({"dog": 0.5, ",": 0.125, "running": 1.0})
    # The class token before the square of places has no part.
    assert shown.heat.tolist() == [[0.25, 0.0], [0.0, 1.0]]


def test_register_tokens_are_no_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a class token and four registers before a square of four places."""
    places = torch.tensor([9.0, 9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 0.0, 4.0])
    found = Effects(torch.zeros(3), places)
    config = SimpleNamespace(patch_size=16)
    model: Any = SimpleNamespace(image_tower=SimpleNamespace(backbone=SimpleNamespace(config=config)))
    monkeypatch.setattr("diptych.report.highlights.effects", lambda *given: found)
    nothing: Any = None
    save_tokenizer(learn_tokenizer(["a dog"], 30), tmp_path, 16)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    highlight = highlighter(retriever_of(model, Weights(1.0), tokenizer), nothing, ["a"])
    assert highlight is not None
    assert highlight(0, 0).heat.tolist() == [[0.25, 0.5], [0.0, 1.0]]


@pytest.mark.parametrize("caption", ["wait\u2026 what", "\ufdfa one", "\ufb01ne \u00bd"])
def test_no_text_is_shown_twice_where_a_tokenizer_makes_several_words_of_a_character(caption: str) -> None:
    vocabulary = {"[PAD]": 0, "[UNK]": 1}
    made = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    made.normalizer = NFKC()
    made.pre_tokenizer = BertPreTokenizer()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]")
    shown = _words(caption, torch.arange(1.0, 40.0), tokenizer, 16)
    assert "".join(text for text, _ in shown) == caption


def test_what_float32_makes_of_nothing_is_no_effect(model: DualEncoder, embedded: Embedded) -> None:
    alike = replace(embedded, grid=embedded.grid.mean(dim=1, keepdim=True).expand_as(embedded.grid).clone())
    found = effects(model, alike, 0, 0, Weights(0.0, 2.0), CPU)
    assert found.grid.tolist() == [0.0] * len(found.grid)
