"""How often a fusion without value is given weight in re-ranking.

    python benchmarks/worthless_fusion.py [--draws 200] [--images 480]

Draws galleries of images with five captions each, in which the towers are right about as often as on Flickr8k, and
scores of fusions that know nothing of which pairs belong together. The weights are chosen as the train stage does, and
by the best mean logarithm of the ranks alone. Prints the share of draws in which any direction has weight.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from diptych.progress import progress
from diptych.retrieval.choices import CLEARLY, choose_weights
from diptych.retrieval.reranking import Candidates, Directed, Shortlist, shortlists

SCALE = 20.0
CAPTIONS, DIM, NOISE, TOP_K = 5, 32, 1.8, 16

Scores = Callable[[Tensor, torch.Generator], Tensor]
"""Function from the scaled similarities (N, M) to scores of the same shape."""
FUSIONS: dict[str, Scores] = {
    "noise": lambda scaled, random: torch.randn(scaled.shape, generator=random),
    "noise of a tenth": lambda scaled, random: 0.1 * torch.randn(scaled.shape, generator=random),
    "the similarity again, with noise": lambda scaled, random: (
        0.5 * scaled + 0.3 * torch.randn(scaled.shape, generator=random)
    ),
    "a liking for some items": lambda scaled, random: (
        0.3 * torch.randn(len(scaled), 1, generator=random) + 0.3 * torch.randn(scaled.shape[1], generator=random)
    ),
}


def gallery(images: int, random: torch.Generator) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return embeddings of images (N, d) and captions (M, d), and each caption's image."""
    owner = np.repeat(np.arange(images), CAPTIONS)
    image = normalize(torch.randn(images, DIM, generator=random), dim=1)
    # Captions of an image err in part together.
    common = torch.randn(images, DIM, generator=random)[owner]
    text = image[owner] + NOISE * (0.6 * common + torch.randn(len(owner), DIM, generator=random)) / DIM**0.5
    return image, normalize(text, dim=1), owner


def scored(found: Candidates, itm: Tensor, alignment: Tensor) -> Candidates:
    """Return the candidates with scores of a fusion, given for all images and captions (N, M)."""

    def of(direction: Shortlist, *scores: Tensor) -> Shortlist:
        itm, alignment = (score.gather(1, direction.index) for score in scores)
        return replace(direction, itm=itm, alignment=alignment)

    return Candidates(of(found.i2t, itm, alignment), of(found.t2i, itm.T, alignment.T))


def main() -> None:
    """Draw, choose, count, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--images", type=int, default=480)
    arguments = parser.parse_args()
    rules = {"the best": 0.0, f"by {CLEARLY:g} standard errors": CLEARLY}
    let_in = {name: dict.fromkeys(rules, 0) for name in FUSIONS}
    right = []
    with progress(None, "draw", unit="gallery", total=arguments.draws) as bar:
        for draw in range(arguments.draws):
            random = torch.Generator().manual_seed(draw)
            image, text, owner = gallery(arguments.images, random)
            found = shortlists(image, text, owner, TOP_K)
            right.append([100 * float((own.before.rank == 1).mean()) for own in found])
            for name, score in FUSIONS.items():
                both = scored(found, *(score(SCALE * image @ text.T, random) for _ in range(2)))
                for rule, clearly in rules.items():
                    let_in[name][rule] += choose_weights(both, SCALE, clearly) != Directed()
            bar.update()
    print("recall@1 of the towers: {:.1f} for images, {:.1f} for captions".format(*np.mean(right, axis=0)))
    print(f"| a fusion that is | {' | '.join(rules)} |\n|---|{'---|' * len(rules)}")
    for name, counts in let_in.items():
        print(f"| {name} | {' | '.join(f'{100 * count / arguments.draws:.1f} %' for count in counts.values())} |")


if __name__ == "__main__":
    main()
