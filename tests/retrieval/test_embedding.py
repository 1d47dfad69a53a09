"""Embedding a split: equal to one image or caption at a time, whatever the batches."""

from unittest.mock import Mock

import numpy as np
import pytest
import torch

from diptych.data.inputs import Inputs
from diptych.retrieval import embedding
from diptych.retrieval.embedding import embed_querybank, embed_split

CPU = torch.device("cpu")


def close(value, expected, tolerance=1e-6):
    torch.testing.assert_close(value, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_every_item_is_embedded_as_if_it_were_alone_and_in_the_order_of_the_split(model, split, batch_size):
    embedded = embed_split(model, split, batch_size=batch_size, device=CPU)
    model.eval()
    for i in range(len(split)):
        alone = model.encode_images(torch.from_numpy(split.pixels([i])))
        close(embedded.image[i], alone.pooled[0].detach())
        close(embedded.grid[i], alone.grid[0].detach())
    for j in range(len(split.captions)):
        alone = model.encode_texts(*map(torch.from_numpy, split.tokens([j])))
        close(embedded.text[j], alone.pooled[0].detach())
        close(embedded.tokens[embedded.offsets[j] : embedded.offsets[j + 1]], alone.tokens[0].detach())


def test_little_padding_is_computed_because_captions_come_by_length(model, split, monkeypatch):
    encode = Mock(wraps=model.encode_texts)
    monkeypatch.setattr(model, "encode_texts", encode)
    embed_split(model, split, batch_size=2, device=CPU)
    widths = [call.args[1].shape[1] for call in encode.call_args_list]
    assert len(widths) > 2
    assert widths == sorted(widths)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_works_in_evaluation_mode_and_comes_back_in_its_own(model, split, training):
    model.train(training)
    first = embed_split(model, split, batch_size=4, device=CPU)
    second = embed_split(model, split, batch_size=4, device=CPU)
    assert torch.equal(first.image, second.image)
    assert model.training is training


def test_the_mode_comes_back_even_when_embedding_fails(model, split, monkeypatch):
    monkeypatch.setattr(split, "pixels", lambda indices: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        embed_split(model, split, batch_size=4, device=CPU)
    assert model.training


def test_bf16_comes_close_and_is_stored_as_float32(model, split):
    exact = embed_split(model, split, batch_size=4, device=CPU)
    rough = embed_split(model, split, batch_size=4, device=CPU, precision="bf16")
    assert rough.image.dtype == rough.grid.dtype == rough.text.dtype == rough.tokens.dtype == torch.float32
    close(rough.image, exact.image, tolerance=0.03)
    assert not torch.equal(rough.image, exact.image)


def test_padded_tokens_are_zero_beyond_each_captions_end(model, split):
    embedded = embed_split(model, split, batch_size=4, device=CPU)
    captions = torch.tensor([len(split.captions) - 1, 0, 3])
    tokens, mask = embedded.padded_tokens(captions)
    assert mask.sum(dim=1).tolist() == split.token_lengths[captions].tolist()
    assert torch.equal(tokens[0][mask[0]], embedded.tokens[embedded.offsets[-2] :])
    assert not tokens[~mask].any()


def test_a_part_is_the_gallery_of_its_images_and_captions(model, split):
    embedded = embed_split(model, split, batch_size=4, device=CPU)
    captions = np.flatnonzero((split.image_of_caption >= 2) & (split.image_of_caption < 5))
    part = embedded.part(slice(2, 5), captions, split.image_of_caption[captions] - 2)
    assert torch.equal(part.image, embedded.image[2:5])
    assert torch.equal(part.grid, embedded.grid[2:5])
    assert torch.equal(part.text, embedded.text[captions])
    chosen = torch.arange(len(captions))
    expected = embedded.padded_tokens(torch.from_numpy(captions))
    assert all(torch.equal(*both) for both in zip(part.padded_tokens(chosen), expected, strict=True))
    assert part.image_of_caption.tolist() == (split.image_of_caption[captions] - 2).tolist()


def test_a_part_keeps_the_biases_of_its_items(model, split, querybank):
    embedded = embed_split(model, split, batch_size=4, device=CPU).biased(querybank, 10.0)
    captions = np.flatnonzero(split.image_of_caption == 1)
    part = embedded.part(slice(1, 2), captions, np.zeros(len(captions), int))
    image, text = embedded.ranking
    assert torch.equal(part.ranking[0], image[1:2])
    assert torch.equal(part.ranking[1], text[captions])


def test_ranking_products_are_the_cosine_less_both_biases(model, split, querybank):
    embedded = embed_split(model, split, batch_size=4, device=CPU).biased(querybank, 10.0)
    image, text = embedded.ranking
    assert embedded.image_bias is not None
    assert embedded.text_bias is not None
    expected = embedded.image @ embedded.text.T - embedded.image_bias[:, None] - embedded.text_bias
    close(image @ text.T, expected)


def test_a_querybank_holds_the_split_or_a_draw_of_it(model, split, monkeypatch):
    embedded = embed_split(model, split, batch_size=4, device=CPU)

    def bank(seed=0, batch_size=4):
        return embed_querybank(model, Inputs(split), seed=seed, batch_size=batch_size, device=CPU)

    def rows(pooled):
        return sorted(pooled.half().tolist())

    assert rows(bank().image) == rows(embedded.image)
    assert rows(bank().text) == rows(embedded.text)
    monkeypatch.setattr(embedding, "QUERIES", 3)
    for drawn, everything in zip(bank()[:2], (embedded.image, embedded.text), strict=True):
        assert drawn.shape == (3, 6)
        assert drawn.dtype == torch.float16
        assert all(row in rows(everything) for row in rows(drawn))
    assert torch.equal(bank().text, bank().text)
    assert not torch.equal(bank().text, bank(seed=1).text)
