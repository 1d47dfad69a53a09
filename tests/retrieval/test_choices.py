"""What is chosen on val, and how seldom luck is taken for a fusion's value."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from diptych.model.querybank import QueryBank
from diptych.retrieval.choices import choose_strength, choose_weights
from diptych.retrieval.embedding import Embedded
from diptych.retrieval.metrics import metrics_from_ranks
from diptych.retrieval.ranking import Outcomes, ranks_from_embeddings
from diptych.retrieval.reranking import Candidates, Directed, Shortlist, Weights

SCALE = 10.0


def gallery_with_a_hub(images=40):
    """Captions lie a little off their images, and towards the last image: it is the nearest of most of them."""
    random = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(images, 16, generator=random), dim=1)
    text = normalize(image + 0.2 * torch.randn(images, 16, generator=random) + 1.2 * image[-1], dim=1)
    nothing = torch.zeros(images, 1, 1)
    return Embedded(nothing, nothing[:, 0], torch.arange(images + 1), image, text, np.arange(images))


def test_biases_as_strong_as_serves_the_ranking_are_chosen():
    embedded = gallery_with_a_hub()
    bank = QueryBank(embedded.image, embedded.text)

    def rsum(gallery: Embedded) -> float:
        image, text = gallery.ranking
        return metrics_from_ranks(*ranks_from_embeddings(image, text, embedded.image_of_caption))["rsum"]

    assert rsum(embedded.biased(bank, 20.0)) > rsum(embedded) + 50
    assert choose_strength(embedded, bank, 20.0) > 0


def test_biases_that_mislead_are_given_no_strength():
    embedded = replace(gallery_with_a_hub(), text=gallery_with_a_hub().image)
    misleading = QueryBank(embedded.image[:1], embedded.text[:1])
    image, text = embedded.biased(misleading, 0.1).ranking
    assert metrics_from_ranks(*ranks_from_embeddings(image, text, embedded.image_of_caption))["rsum"] < 600
    assert choose_strength(embedded, misleading, 0.1) == 0.0


def shortlist(
    similarity: Tensor, itm: Tensor, relevant: Tensor, image: NDArray[np.int64], alignment: Tensor | None = None
) -> Shortlist:
    """Candidates (Q, K) that are the whole gallery."""
    best = similarity.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    rank = 1 + (~relevant & (similarity >= best)).sum(dim=1).numpy()
    return Shortlist(
        index=torch.arange(similarity.shape[1]).expand_as(similarity),
        similarity=similarity,
        itm=itm,
        alignment=torch.zeros_like(itm) if alignment is None else alignment,
        relevant=relevant,
        relevant_items=relevant.sum(dim=1).numpy(),
        image=image,
        before=Outcomes.one_relevant(rank, np.zeros(len(rank), bool)),
    )


def gallery(images: int, seed: int = 0, captions: int = 2) -> tuple[Tensor, Tensor, NDArray[np.int64]]:
    """Similarities (N, M) by which about a third of the queries are right, which pairs belong together, and owners."""
    random = torch.Generator().manual_seed(seed)
    owner = np.repeat(np.arange(images), captions)
    image = normalize(torch.randn(images, 12, generator=random), dim=1)
    text = normalize(image[owner] + 0.45 * torch.randn(len(owner), 12, generator=random), dim=1)
    return image @ text.T, torch.from_numpy(owner)[None] == torch.arange(images)[:, None], owner


def candidates(similarity: Tensor, itm: Tensor, relevant: Tensor, owner: NDArray[np.int64]) -> Candidates:
    images = np.arange(len(similarity))
    return Candidates(shortlist(similarity, itm, relevant, images), shortlist(similarity.T, itm.T, relevant.T, owner))


def knowing(relevant: Tensor, seed: int = 1) -> Tensor:
    """Logits of a fusion that tells right from wrong, roughly."""
    return 2.0 * relevant + torch.randn(relevant.shape, generator=torch.Generator().manual_seed(seed))


def test_a_fusion_that_knows_more_has_weight_in_both_directions() -> None:
    similarity, relevant, owner = gallery(60)
    assert all(
        weights.itm > 0 for weights in choose_weights(candidates(similarity, knowing(relevant), relevant, owner), SCALE)
    )


def test_each_direction_has_weights_of_its_own() -> None:
    similarity, relevant, owner = gallery(60)
    both = candidates(similarity, knowing(relevant), relevant, owner)
    one = both._replace(i2t=replace(both.i2t, itm=-both.i2t.itm))
    chosen = choose_weights(one, SCALE)
    assert chosen.i2t == Weights()
    assert chosen.t2i == choose_weights(both, SCALE).t2i


def test_the_score_that_knows_more_has_the_weight() -> None:
    similarity, relevant, owner = gallery(60)
    both = candidates(similarity, knowing(relevant), relevant, owner)
    aligned = Candidates(*(replace(own, itm=own.alignment, alignment=own.itm) for own in both))
    chosen = choose_weights(both, SCALE)
    assert choose_weights(aligned, SCALE) == Directed(*(Weights(own.alignment, own.itm) for own in chosen))


def test_the_best_weights_of_a_direction_are_chosen() -> None:
    similarity, relevant, owner = gallery(60)
    found = candidates(similarity, knowing(relevant), relevant, owner)
    losses = {
        weight: np.log(found.t2i.ranks(SCALE, Weights(weight))).mean() for weight in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    }
    assert choose_weights(found, SCALE).t2i == Weights(min(losses, key=lambda weight: losses[weight]))


def test_what_is_clear_only_in_both_directions_together_counts_for_both() -> None:
    similarity, relevant, owner = gallery(60)
    weak = 0.5 * relevant + torch.randn(relevant.shape, generator=torch.Generator().manual_seed(1))
    both = candidates(similarity, weak, relevant, owner)
    alone = both._replace(i2t=replace(both.i2t, itm=torch.zeros_like(both.i2t.itm)))
    assert choose_weights(alone, SCALE) == Directed()
    assert any(choose_weights(both, SCALE).t2i)


def test_where_all_is_right_already_nothing_is_added() -> None:
    _, relevant, owner = gallery(20)
    assert choose_weights(candidates(relevant.float(), knowing(relevant), relevant, owner), SCALE) == Directed()


def test_a_fusion_that_misleads_is_given_no_weight() -> None:
    similarity, relevant, owner = gallery(60)
    assert choose_weights(candidates(similarity, -knowing(relevant), relevant, owner), SCALE) == Directed()


@pytest.mark.parametrize("size", [0.1, 1.0])
def test_a_fusion_without_value_is_seldom_let_in(size: float) -> None:
    """Noise is better than none at some weight in most draws; docs/decisions has the rates of larger galleries."""
    let_in = 0
    for draw in range(100):
        similarity, relevant, owner = gallery(40, seed=draw)
        noise = size * torch.randn(similarity.shape, generator=torch.Generator().manual_seed(1000 + draw))
        let_in += choose_weights(candidates(similarity, noise, relevant, owner), SCALE) != Directed()
    assert let_in <= 5
