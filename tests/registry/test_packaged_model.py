"""The packaged model embeds and scores as the model does, whatever else is in the table."""

from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_model import write_tiny_model

from diptych import retriever
from diptych.data.images import open_image, to_pixels
from diptych.model.package import load_model
from diptych.registry.packaged_model import PackagedModel
from diptych.registry.packaging import input_example, signature


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("packaged") / "model")


@pytest.fixture(scope="module")
def model(folder):
    packaged = PackagedModel()
    packaged.load_context(SimpleNamespace(artifacts={"model": str(folder)}))
    return packaged


def picture(colour: str, mode: str = "RGB") -> bytes:
    buffer = BytesIO()
    Image.new(mode, (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


def bias(of, embedding, loaded) -> float:
    return of(torch.from_numpy(embedding)[None], loaded.model.logit_scale.item()).item()


def predict(model, **columns) -> pd.DataFrame:
    return model.predict(None, pd.DataFrame(columns))


def test_texts_are_embedded_as_the_text_tower_does(model, folder):
    loaded = load_model(folder)
    ids = loaded.tokenizer("a red square", return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        expected = loaded.model.encode_texts(ids, torch.ones_like(ids).bool()).pooled[0].numpy()

    output = predict(model, text=["a red square", "a much longer sentence about a small green triangle"])

    np.testing.assert_allclose(output["embedding"][0], expected, atol=1e-5)
    assert output["bias"][0] == pytest.approx(bias(loaded.querybank.text_bias, expected, loaded), abs=1e-5)
    assert output[["similarity", "match", "alignment", "score"]].isna().all(axis=None)


def test_images_are_embedded_as_the_image_tower_does(model, folder):
    loaded = load_model(folder)
    pixels = torch.tensor(to_pixels(open_image(picture("red"), 10_000), 32, "stretch"))[None]
    with torch.inference_mode():
        expected = loaded.model.encode_images(pixels).pooled[0].numpy()

    output = predict(model, image=[picture("red"), picture("grey", "L")])

    np.testing.assert_allclose(output["embedding"][0], expected, atol=1e-5)
    assert output["bias"][0] == pytest.approx(bias(loaded.querybank.image_bias, expected, loaded), abs=1e-5)
    assert np.linalg.norm(output["embedding"][1]) == pytest.approx(1, abs=1e-5)


def test_pairs_are_scored_by_cosine_match_and_both(model, folder):
    images, texts = [picture("red"), picture("blue")], ["a red square", "a small blue circle"]

    output = predict(model, image=images, text=texts)

    seen, read = predict(model, image=images), predict(model, text=texts)
    cosine = [float(np.dot(*both)) for both in zip(seen["embedding"], read["embedding"], strict=True)]
    scale = load_model(folder).model.logit_scale.item()
    np.testing.assert_allclose(output["similarity"], cosine, atol=1e-5)
    normalized = output["similarity"] - seen["bias"] - read["bias"]
    np.testing.assert_allclose(
        output["score"], scale * normalized + 0.5 * output["match"] + 0.25 * output["alignment"], atol=1e-4
    )
    assert output[["embedding", "bias"]].isna().all(axis=None)


def test_a_row_does_not_depend_on_its_neighbours(model, monkeypatch):
    rows = {"image": [None, picture("red"), picture("red"), None], "text": ["a red square", None, "two stars", "stars"]}
    together = predict(model, **rows)
    monkeypatch.setattr(model.retriever, "batch_size", 1)
    alone = predict(model, **rows)

    for a, b in zip(together.itertuples(), alone.itertuples(), strict=True):
        assert (a.embedding is None) == (b.embedding is None)
        if a.embedding is not None:
            np.testing.assert_allclose(a.embedding, b.embedding, atol=1e-5)
        np.testing.assert_allclose(
            [a.similarity, a.match, a.alignment, a.score], [b.similarity, b.match, b.alignment, b.score], atol=1e-4
        )


def test_the_signature_names_what_goes_in_and_comes_out(model):
    example = input_example()
    assert sorted(signature().inputs.input_names()) == sorted(example.columns)
    assert signature().outputs.input_names() == list(model.predict(None, example).columns)


def test_the_index_of_the_input_is_that_of_the_output(model):
    output = model.predict(None, pd.DataFrame({"text": ["a", "b"]}, index=[7, 3]))

    assert list(output.index) == [7, 3]


def test_an_empty_table_gives_an_empty_table(model):
    assert len(predict(model, text=[])) == 0


def test_an_empty_text_is_a_text(model):
    assert predict(model, text=[""])["embedding"][0] is not None


def test_a_row_without_text_and_image_is_named(model):
    with pytest.raises(ValueError, match="row 1 has neither text nor image"):
        predict(model, text=["a", None])


def test_bytes_that_are_no_image_are_named_by_their_row(model, monkeypatch):
    monkeypatch.setattr(model.retriever, "batch_size", 1)

    with pytest.raises(ValueError, match="row 1: "):
        predict(model, image=[picture("red"), b"text"])


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": [picture("red"), "red.png"]}, "row 1: image must be bytes, not str"),
        ({"text": ["stars", 3]}, "row 1: text must be str, not int"),
        ({"text": ["stars"], "image": ["red.png"]}, "row 0: image must be bytes, not str"),
    ],
)
def test_what_is_neither_text_nor_bytes_is_named_by_its_row(model, columns, said):
    with pytest.raises(ValueError, match=said):
        predict(model, **columns)


def test_an_image_of_too_many_pixels_is_named_by_its_row(model, monkeypatch):
    monkeypatch.setattr(retriever, "MAX_PIXELS", 40 * 30 - 1)
    with pytest.raises(ValueError, match="row 0: 40×30 pixels, more than 1199"):
        predict(model, image=[picture("red")])
