"""Predicted words are those of the captions, whatever these consist of."""

from __future__ import annotations

import numpy as np
import torch
from coloured_things import world

from diptych.retrieval.predicted_words import WordPredictor


def test_words_that_are_predicted_are_those_of_the_captions() -> None:
    train, test = world(300, 0), world(80, 2)
    words = WordPredictor(train, [0.01])
    sentences = words.sentences(words.predicted(test.image, 0.01, 4))
    right = total = 0
    for image, sentence in enumerate(sentences):
        caption = test.captions[int(np.argmax(test.image_of_caption == image))]
        right += len(set(sentence.split()) & set(caption.split()))
        total += len(sentence.split())
    assert right / total > 0.8


def test_counts_and_lengths_are_those_of_the_captions_without_function_words() -> None:
    train = world(300, 0)
    words = WordPredictor(train, [0.01])
    contents = [[word for word in caption.split() if word not in ("a", "and", "the")] for caption in train.captions]
    assert words.mean_length == sum(map(len, contents)) / len(contents)
    assert words.counts(["a dog and a red dog", "of"]).sum(dim=1).tolist() == [3.0, 0.0]
    assert sorted(words.containing.tolist()) == sorted(
        sum(word in content for content in contents) for word in {word for content in contents for word in content}
    )


def test_captions_without_any_words_are_no_obstacle() -> None:
    signs = world(20, 0)
    signs = signs._replace(captions=(["!?", "…"] * 30)[: len(signs.text)])
    words = WordPredictor(signs, [0.1])
    assert words.counts(["!? …", "…"]).sum(dim=1).tolist() == [2.0, 1.0]
    assert torch.isfinite(words.predicted(signs.image, 0.1, 5)).all()
