"""A retriever encodes, scores and ranks as the model's parts do by hand."""

import subprocess
import sys
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_model import write_tiny_model

from diptych import Encoded, Retriever
from diptych.data.images import open_image, to_pixels
from diptych.errors import DiptychError
from diptych.model.package import FusionWeights, LoadedModel, load_model
from diptych.retriever import ImageInputError

COLOURS = ["red", "blue", "green", "yellow", "grey", "black", "white"]
TEXTS = [
    "a red square left of a blue circle",
    "a small green triangle",
    "two yellow stars above a grey square",
    "a circle",
    "a blue star",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("retriever") / "model")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> LoadedModel:
    return load_model(folder)


@pytest.fixture
def retriever(folder: Path) -> Retriever:
    return Retriever.load(folder, "cpu", batch_size=2)


def photo(colour: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [photo(colour) for colour in COLOURS]


def test_the_class_is_imported_without_torch() -> None:
    code = (
        "import sys; from diptych import Retriever; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_images_are_encoded_one_by_one_as_in_a_batch(retriever: Retriever, loaded: LoadedModel) -> None:
    encoded = retriever.encode_images(IMAGES, tokens=True)

    for position, content in enumerate(IMAGES):
        pixels = torch.from_numpy(to_pixels(open_image(content, 10_000), 32, "stretch").copy())[None]
        with torch.inference_mode():
            alone = loaded.model.encode_images(pixels)
            bias = loaded.querybank.image_bias(alone.pooled, loaded.model.logit_scale.item())
        np.testing.assert_allclose(encoded.embedding[position], alone.pooled[0], atol=1e-5)
        assert encoded.bias[position] == pytest.approx(bias.item(), abs=1e-5)
        assert encoded.tokens is not None
        torch.testing.assert_close(encoded.tokens[position], alone.grid[0], atol=1e-4, rtol=1e-4)
    assert encoded.embedding.dtype == encoded.bias.dtype == np.float32


def test_texts_are_encoded_one_by_one_as_in_a_batch(retriever: Retriever, loaded: LoadedModel) -> None:
    encoded = retriever.encode_texts(TEXTS, tokens=True)

    assert encoded.tokens is not None
    assert encoded.offsets is not None
    for position, text in enumerate(TEXTS):
        ids = loaded.tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            alone = loaded.model.encode_texts(ids, torch.ones_like(ids).bool())
        np.testing.assert_allclose(encoded.embedding[position], alone.pooled[0], atol=1e-5)
        tokens = encoded.tokens[encoded.offsets[position] : encoded.offsets[position + 1]]
        torch.testing.assert_close(tokens, alone.tokens[0], atol=1e-4, rtol=1e-4)


def test_paths_pictures_and_bytes_are_the_same_image(retriever: Retriever, tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(IMAGES[0])

    encoded = retriever.encode_images(
        [IMAGES[0], tmp_path / "red.png", str(tmp_path / "red.png"), Image.new("RGB", (40, 30), "red")]
    )

    for other in encoded.embedding[1:]:
        np.testing.assert_allclose(encoded.embedding[0], other, atol=1e-6)


def odd_file(mode: str, **options: Any) -> bytes:
    """Return a file of an image whose left half differs from its right."""
    picture = Image.new(mode, (40, 30), "blue")
    picture.paste("red", (0, 0, 20, 30))
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    file = BytesIO()
    picture.save(file, **options)
    return file.getvalue()


def turned_right() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.mark.parametrize(
    "content",
    [odd_file("RGB", format="JPEG", exif=turned_right()), odd_file("RGBA", format="PNG")],
    ids=["turned", "transparent"],
)
def test_an_opened_image_is_encoded_as_its_file(retriever: Retriever, content: bytes) -> None:
    file, opened = retriever.encode_images([content, Image.open(BytesIO(content))]).embedding
    as_stored = Image.fromarray(np.asarray(Image.open(BytesIO(content)).convert("RGB")))
    ignored = retriever.encode_images([as_stored]).embedding[0]

    np.testing.assert_array_equal(opened, file)
    assert np.abs(ignored - file).max() > 1e-3


def score_by_hand(loaded: LoadedModel, image: bytes, text: str, queries: str = "texts") -> float:
    """Return the score of re-ranking, from the model's parts."""
    model, scale = loaded.model, loaded.model.logit_scale.item()
    ids = loaded.tokenizer(text, return_tensors="pt")["input_ids"]
    pixels = torch.from_numpy(to_pixels(open_image(image, 10_000), 32, "stretch").copy())[None]
    with torch.inference_mode():
        seen, read = model.encode_images(pixels), model.encode_texts(ids, torch.ones_like(ids).bool())
        fused = model.fuse(seen.grid, read.tokens, read.mask)
        assert fused.alignment is not None
        biases = loaded.querybank.image_bias(seen.pooled, scale) + loaded.querybank.text_bias(read.pooled, scale)
        similarity = (seen.pooled * read.pooled).sum() - biases
        weights = loaded.reranking.t2i if queries == "texts" else loaded.reranking.i2t
        return float(scale * similarity + weights.itm * fused.itm + weights.alignment * fused.alignment)


def test_a_pair_has_the_score_of_re_ranking(retriever: Retriever, loaded: LoadedModel) -> None:
    scores = retriever.score(IMAGES[:5], TEXTS)

    assert scores == pytest.approx(
        [score_by_hand(loaded, *pair) for pair in zip(IMAGES, TEXTS, strict=False)], abs=1e-3
    )
    encoded = retriever.encode_images(IMAGES[:5], tokens=True), retriever.encode_texts(TEXTS, tokens=True)
    assert retriever.score(*encoded) == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("direction", ["texts", "images"])
def test_items_are_ranked_by_the_score_of_their_pairs(
    retriever: Retriever, loaded: LoadedModel, direction: str
) -> None:
    queries, gallery = (TEXTS, IMAGES) if direction == "texts" else (IMAGES, TEXTS)
    by_hand = np.array([[score_by_hand(loaded, i, t, direction) for t in TEXTS] for i in IMAGES])
    by_hand = by_hand.T if direction == "texts" else by_hand

    retriever.reranking = retriever.reranking.model_copy(update={"top_k": 10})

    ranking = retriever.rank(queries, gallery, k=100)

    np.testing.assert_allclose(ranking.score, -np.sort(-by_hand, axis=1), atol=1e-3)
    np.testing.assert_allclose(np.take_along_axis(by_hand, ranking.items, axis=1), ranking.score, atol=1e-3)


def test_without_re_ranking_items_are_ranked_by_cosine_minus_their_bias(retriever: Retriever) -> None:
    text, image = retriever.encode_texts(TEXTS), retriever.encode_images(IMAGES)

    ranking = retriever.rank(text, image, k=3, rerank=False)

    expected = np.argsort(-(text.embedding @ image.embedding.T - image.bias), axis=1)[:, :3]
    assert ranking.items.tolist() == expected.tolist()


def test_only_the_first_candidates_are_re_ranked(retriever: Retriever) -> None:
    retriever.reranking = retriever.reranking.model_copy(update={"top_k": 2})
    without = retriever.rank(TEXTS, IMAGES, k=7, rerank=False)

    ranking = retriever.rank(TEXTS, IMAGES, k=7)

    assert np.sort(ranking.items[:, :2]).tolist() == np.sort(without.items[:, :2]).tolist()
    assert ranking.items[:, 2:].tolist() == without.items[:, 2:].tolist()


@pytest.fixture
def without_fusion(retriever: Retriever) -> Retriever:
    """A model whose fusion has no weights, as where none was trained."""
    none = FusionWeights(itm=0.0, alignment=0.0)
    retriever.reranking = retriever.reranking.model_copy(update={"i2t": none, "t2i": none})
    return retriever


def test_a_fusion_without_weights_says_nothing_of_a_pair(without_fusion: Retriever) -> None:
    image, text = without_fusion.encode_images(IMAGES[:5]), without_fusion.encode_texts(TEXTS)

    for scores in (without_fusion.score_pairs(IMAGES[:5], TEXTS), without_fusion.score_pairs(image, text)):
        assert not scores.itm.any()
        assert not scores.alignment.any()
        cosines = (image.embedding * text.embedding).sum(axis=1)
        expected = without_fusion.logit_scale * (cosines - image.bias - text.bias)
        np.testing.assert_allclose(scores.score, expected, atol=1e-3)


def test_no_tokens_are_kept_for_queries_that_nothing_re_ranks(
    retriever: Retriever, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here texts rank images without the fusion, and images rank texts with it."""
    none = FusionWeights(itm=0.0, alignment=0.0)
    retriever.reranking = retriever.reranking.model_copy(update={"t2i": none})
    asked: list[bool] = []
    encode_texts = retriever.encode_texts

    def recorded(texts: Sequence[str], *, tokens: bool = False) -> Encoded:
        asked.append(tokens)
        return encode_texts(texts, tokens=tokens)

    monkeypatch.setattr(retriever, "encode_texts", recorded)

    ranking = retriever.rank(TEXTS, IMAGES, k=3)
    retriever.rank(IMAGES, TEXTS, k=3)

    assert asked == [False, True]
    np.testing.assert_array_equal(ranking.items, retriever.rank(TEXTS, IMAGES, k=3, rerank=False).items)


def test_nothing_ranks_nothing(retriever: Retriever) -> None:
    nothing = retriever.encode_images([], tokens=True)

    assert retriever.rank(TEXTS, nothing).items.shape == (5, 0)
    assert len(retriever.encode_texts([])) == 0
    assert len(retriever.score([], [])) == 0


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([IMAGES[0], Path("nowhere.png")], r"nowhere\.png: No such file or directory"),
        ([IMAGES[0], IMAGES[1], b"text"], "image 2: not an image"),
        ([b""], "image 0: empty file"),
        ([7], "image 0: int is neither a path nor"),
        ([Image.new("RGB", (0, 5))], "image 0: 0×5 pixels, none at all"),
        ([Image.open(BytesIO(odd_file("RGB", format="PNG")[:-30]))], "image 0: truncated, damaged or closed PNG"),
    ],
)
def test_a_bad_image_is_named(retriever: Retriever, images: list[Any], message: str) -> None:
    with pytest.raises(ImageInputError, match=message):
        retriever.encode_images(images)


def test_an_array_of_texts_is_a_sequence_of_texts(retriever: Retriever) -> None:
    ranking = retriever.rank(np.array(TEXTS), IMAGES[:5], k=2)  # type: ignore[arg-type]

    np.testing.assert_array_equal(ranking.items, retriever.rank(TEXTS, IMAGES[:5], k=2).items)


def test_an_opened_image_may_be_given_several_times(retriever: Retriever, tmp_path: Path) -> None:
    Image.effect_noise((700, 700), 90).convert("RGB").save(tmp_path / "noise.png")
    opened = Image.open(tmp_path / "noise.png")

    first, *others = retriever.encode_images([opened] * 8).embedding

    for other in others:
        np.testing.assert_allclose(other, first, atol=1e-6)


def test_less_than_one_item_is_refused(retriever: Retriever) -> None:
    with pytest.raises(DiptychError, match="k is 0"):
        retriever.rank(TEXTS, IMAGES[:5], k=0)


def test_pairs_are_images_with_texts(retriever: Retriever) -> None:
    texts = retriever.encode_texts(TEXTS, tokens=True)
    with pytest.raises(DiptychError, match="give the images first"):
        retriever.score(texts, texts)


def test_no_encoded_pairs_have_no_scores(retriever: Retriever) -> None:
    nothing = retriever.encode_images([], tokens=True), retriever.encode_texts([], tokens=True)
    assert retriever.score(*nothing).shape == (0,)


def test_a_single_string_is_no_list_of_texts(retriever: Retriever) -> None:
    with pytest.raises(DiptychError, match="Give a list of texts"):
        retriever.rank("a red circle", IMAGES[:5])


def test_two_sides_of_one_kind_are_refused(retriever: Retriever) -> None:
    with pytest.raises(DiptychError, match="one side has to be of each kind"):
        retriever.rank(TEXTS, TEXTS)


def test_sides_of_different_lengths_are_no_pairs(retriever: Retriever) -> None:
    with pytest.raises(DiptychError, match="7 images and 5 texts are no pairs"):
        retriever.score(IMAGES, TEXTS)


def test_re_ranking_needs_tokens(retriever: Retriever) -> None:
    without: Encoded = retriever.encode_images(IMAGES)

    with pytest.raises(DiptychError, match="encode with tokens=True"):
        retriever.rank(TEXTS, without)


def test_a_retriever_moves_between_devices(retriever: Retriever) -> None:
    assert retriever.to("cpu") is retriever
    with pytest.raises(DiptychError, match="which this machine does not have"):
        retriever.to("mps")


def test_a_folder_without_a_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DiptychError, match="does not hold a whole model"):
        Retriever.load(tmp_path)
