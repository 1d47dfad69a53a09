"""Which queries the report shows, and what stands beside them."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.report.gallery import choose_queries, make_gallery, picture


def listed(ranked):
    return lambda query: ranked[query].tolist()


@pytest.mark.parametrize(
    ("ranks", "found", "missed"),
    [
        ([1] * 10 + [2] * 10, [0, 5], [10, 15]),
        ([1] * 10, [0, 2, 5, 7], []),
        ([7] * 8, [], [0, 2, 4, 6]),
        ([1, 2], [0], [1]),
        ([1, 3, 3, 3, 3, 3], [0], [1, 2, 4]),
    ],
)
def test_half_of_the_queries_are_found_and_half_missed_as_far_as_there_are(ranks, found, missed):
    assert choose_queries(np.array(ranks), 4) == (found, missed)


def test_a_single_query_is_taken_from_where_there_is_one():
    assert choose_queries(np.array([1, 1, 2]), 1) == ([0], [])
    assert choose_queries(np.array([2, 2]), 1) == ([], [0])


def test_an_images_captions_are_marked_relevant_when_they_are_its_own(split):
    captions = len(split.captions)
    ranked = torch.arange(captions).repeat(len(split), 1)
    gallery = make_gallery(split, "i2t", listed(ranked), np.array([1] + [9] * (len(split) - 1)), 2)
    own = int(split.caption_ranges[1])
    assert [result.relevant for result in gallery.hits[0].results] == [j < own for j in range(5)]
    assert gallery.hits[0].results[0].item == split.captions[0]
    assert gallery.hits[0].missing is None


def test_a_query_that_shows_nothing_relevant_names_what_it_missed(split):
    ranked = torch.arange(len(split) - 1).repeat(len(split.captions), 1)
    ranks = np.array([1] * (len(split.captions) - 1) + [41])
    missed = make_gallery(split, "t2i", listed(ranked[:, :5]), ranks, 2).misses[0]
    assert missed.item == split.captions[-1]
    assert not any(result.relevant for result in missed.results)
    assert (missed.rank, missed.missing) == (41, picture(split, len(split) - 1))


def test_a_caption_whose_image_is_shown_has_missed_nothing(split):
    ranked = torch.arange(3).repeat(len(split.captions), 1)
    found = make_gallery(split, "t2i", listed(ranked), np.ones(len(split.captions), dtype=int), 1).hits[0]
    assert [result.relevant for result in found.results] == [True, False, False]
    assert found.missing is None


def test_pictures_are_small_jpegs_described_by_a_caption(split, monkeypatch):
    monkeypatch.setattr(split, "pixels", lambda indices: np.zeros((len(indices), 400, 400, 3), np.uint8))
    shown = picture(split, 2)
    content = base64.b64decode(shown.uri.removeprefix("data:image/jpeg;base64,"))
    assert Image.open(io.BytesIO(content)).size == (128, 128)
    assert shown.alt == split.captions[split.caption_ranges[2]]
