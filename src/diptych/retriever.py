"""The public face of a trained model: `from diptych import Retriever`.

Nothing heavy is imported before a model is loaded, so `diptych` itself stays cheap to import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import count
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych.config import Validate
from diptych.data.images import ImageError, open_image, to_pixels, to_upright_rgb
from diptych.errors import DiptychError
from diptych.progress import progress

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from diptych.data.inputs import Inputs
    from diptych.data.prepared import PreparedSplit
    from diptych.model.package import LoadedModel
    from diptych.retrieval.embedding import Embedded
    from diptych.retrieval.evaluation import Evaluation
    from diptych.retrieval.reranking import Directed, Weights

    ImageInput = str | Path | bytes | Image.Image

FETCHERS = "diptych.models"
"""Group of entry points: by the scheme of an address, a context manager that gives the folder of its model."""
MAX_PIXELS = Validate().max_pixels
"""Largest width × height of an image that is decoded."""
_PAIRS = 1024
"""Pairs whose tokens are in memory at once."""
_DECODING = Lock()
_DELAY = 2.0
"""Seconds before a progress bar appears: short work has none."""


class ImageInputError(DiptychError):
    """An image that cannot be encoded.

    Attributes:
        index: its position in the input.
        reason: what is wrong with it.
    """

    def __init__(self, index: int, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.index = index
        self.reason = reason


@dataclass(frozen=True, eq=False)
class Encoded:
    """N encoded images or texts.

    Attributes:
        embedding: float32 (N, d), rows of length one.
        bias: float32 (N,), query-bank bias. A query ranks items by cosine minus their bias.
        tokens: the tokens that re-ranking reads: of images float32 (N, G, d), of texts float32 (T, d), one text after
            the other; None where they were not asked for.
        offsets: of texts, int64 (N + 1,): the tokens of text j are offsets[j]:offsets[j + 1]; None for images.
    """

    embedding: NDArray[np.float32]
    bias: NDArray[np.float32]
    tokens: Tensor | None = None
    offsets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.embedding)

    def part(self, item: int) -> Encoded:
        """Return item `item` by itself."""
        one = slice(item, item + 1)
        embedding, bias = self.embedding[one], self.bias[one]
        if self.offsets is None:
            return Encoded(embedding, bias, None if self.tokens is None else self.tokens[one])
        start, end = self.offsets[item], self.offsets[item + 1]
        tokens = None if self.tokens is None else self.tokens[start:end]
        return Encoded(embedding, bias, tokens, self.offsets[item : item + 2] - start)


class PairScores(NamedTuple):
    """The scores of P pairs, each float32 (P,)."""

    similarity: NDArray[np.float32]
    """Cosine of both embeddings."""
    itm: NDArray[np.float32]
    """Logit of image-text matching; 0 where the fusion has no weights."""
    alignment: NDArray[np.float32]
    """Token-alignment score; 0 where the model has none, or the fusion no weights."""
    score: NDArray[np.float32]
    """Score of re-ranking, where the text is the query: the scaled cosine minus both biases, plus the fusion's scores
    with the weights of that direction.
    """


class Ranking(NamedTuple):
    """The first k items of a gallery for each of Q queries, best first."""

    items: NDArray[np.int64]
    """(Q, k), positions in the gallery."""
    score: NDArray[np.float32]
    """(Q, k). Re-ranked items have the weighted scores of the fusion added; those behind them and all without
    re-ranking have the scaled cosine minus both biases alone."""


class Retriever:
    """A trained model that ranks images for texts and texts for images.

    Images are given as paths, bytes of image files or PIL images; texts as strings.

    Attributes:
        model: the dual encoder, in evaluation mode.
        tokenizer: tokenizer of the text tower.
        preprocessing: image size, resize mode and token limit.
        reranking: number of candidates, and weights of the fusion.
        query_bank: training embeddings from which biases are computed.
        calibration: what the probability of a right first result is computed from; None where there is none.
        device: device that the model computes on.
        batch_size: images or texts encoded at once.

    Example:
        >>> retriever = Retriever.load("models:/diptych@champion")
        >>> ranking = retriever.rank(["two dogs in the snow"], sorted(Path("photos").glob("*.jpg")), k=5)
    """

    def __init__(self, loaded: LoadedModel, device: torch.device, batch_size: int = 64) -> None:
        """Wrap a model that `load_model` has read onto `device`."""
        self.model, self.tokenizer, self.preprocessing, self.reranking, self.query_bank, self.calibration = loaded
        self.device = device
        self.batch_size = batch_size

    @classmethod
    def load(cls, source: str | Path, device: str = "auto", batch_size: int = 64) -> Retriever:
        """Load a model.

        Args:
            source: a folder that training has written (artifacts/model) or an MLflow address, such as
                "models:/diptych@champion" or "models:/diptych/3". The MLflow is that of the project which the current
                folder lies in; elsewhere MLFLOW_TRACKING_URI names it.
            device: auto, cpu, cuda or mps; auto uses a GPU if there is one.
            batch_size: images or texts to encode at once.

        Raises:
            DiptychError: the source holds no complete model, or this machine has no such device.
        """
        from diptych.model.device import choose_device
        from diptych.model.package import load_model

        chosen = choose_device(device)
        with _located(source) as folder:
            return cls(load_model(folder, str(chosen)), chosen, batch_size)

    def to(self, device: str) -> Retriever:
        """Move the model to `device` (auto, cpu, cuda or mps) and return this retriever.

        Raises:
            DiptychError: this machine has no such device.
        """
        from diptych.model.device import choose_device

        self.device = choose_device(device)
        self.model.to(self.device)
        # In single precision, which biases are computed in, so that no search has to convert the bank.
        image, text = (side.to(self.device).float() for side in (self.query_bank.image, self.query_bank.text))
        self.query_bank = self.query_bank._replace(image=image, text=text)
        return self

    @property
    def logit_scale(self) -> float:
        """Multiplier of cosines (1 / temperature)."""
        return float(self.model.logit_scale.item())

    @property
    def weights(self) -> Directed:
        """Weights of the fusion's scores in re-ranking."""
        from diptych.retrieval.reranking import Directed, Weights

        directions = self.reranking.i2t, self.reranking.t2i
        return Directed(*(Weights(weights.itm, weights.alignment) for weights in directions))

    def encode_images(self, images: Sequence[ImageInput], *, tokens: bool = False) -> Encoded:
        """Encode N images.

        Args:
            images: paths, bytes of image files or PIL images.
            tokens: whether to keep the grid tokens, with which the result can be re-ranked.

        Raises:
            ImageInputError: an image is missing, damaged or too large; the message names it.
        """
        return self._encode_images(images, tokens)

    def _encode_images(self, images: Sequence[ImageInput], tokens: bool, first: int = 0) -> Encoded:
        """Encode images, of which the first is named by the number `first`."""
        import torch

        from diptych.retrieval.embedding import inference

        embeddings, grids = [], []
        with self._progress("encode images", len(images)) as bar, inference(self.model, self.device, "no"):
            for pixels in self._pixel_batches(images, first):
                features = self.model.encode_images(torch.from_numpy(pixels).to(self.device))
                embeddings.append(features.pooled.float().cpu())
                if tokens:
                    grids.append(features.grid.float().cpu())
                bar.update(len(pixels))
        embedding = torch.cat(embeddings) if embeddings else torch.zeros(0, self.query_bank.image.shape[1])
        bias = self._bias(self.query_bank.image_bias, embedding)
        if tokens and not grids:
            grids = [torch.zeros(0, self.model.image_tower.grid_size, embedding.shape[1])]
        return Encoded(embedding.numpy(), bias, torch.cat(grids) if tokens else None)

    def encode_texts(self, texts: Sequence[str], *, tokens: bool = False) -> Encoded:
        """Encode N texts, short ones together so that little padding is computed.

        Args:
            texts: sentences; what is beyond the model's token limit is cut off.
            tokens: whether to keep the token states, with which the result can be re-ranked.
        """
        import torch

        from diptych.retrieval.embedding import TextCollector, inference

        if isinstance(texts, str):
            raise DiptychError("Give a list of texts: a single string is a sequence of letters.")
        texts, limit = [str(text) for text in texts], self.preprocessing.max_tokens
        ids = self.tokenizer(texts, truncation=True, max_length=limit)["input_ids"] if texts else []
        lengths = np.array([len(sequence) for sequence in ids], np.int64)
        collector = TextCollector(lengths)
        with self._progress("encode texts", len(texts)) as bar, inference(self.model, self.device, "no"):
            for start in range(0, len(texts), self.batch_size):
                batch = collector.order[start : start + self.batch_size]
                padded = torch.zeros(len(batch), int(lengths[batch].max()), dtype=torch.long)
                for row, text in enumerate(batch):
                    padded[row, : lengths[text]] = torch.tensor(ids[text])
                mask = torch.arange(padded.shape[1]) < torch.from_numpy(lengths[batch])[:, None]
                collector.add(self.model.encode_texts(padded.to(self.device), mask.to(self.device)))
                bar.update(len(batch))
        embedding, states, offsets = collector.collect(self.query_bank.text.shape[1])
        bias = self._bias(self.query_bank.text_bias, embedding)
        return Encoded(embedding.numpy(), bias, states if tokens else None, offsets)

    def score(self, images: Sequence[ImageInput] | Encoded, texts: Sequence[str] | Encoded) -> NDArray[np.float32]:
        """Return the score of each image for the text at the same position, as re-ranking computes it: float32 (P,).

        Raises:
            DiptychError: the numbers of images and texts differ, or an image cannot be encoded.
        """
        return self.score_pairs(images, texts).score

    def score_pairs(self, images: Sequence[ImageInput] | Encoded, texts: Sequence[str] | Encoded) -> PairScores:
        """Return the score of each image with the text at the same position, and the parts that it is made of.

        A fusion that was not trained, or ranked no better on val, has no weights: it is not asked, and its parts are 0.

        Raises:
            DiptychError: as `score`.
        """
        if len(images) != len(texts):
            raise DiptychError(f"{len(images)} images and {len(texts)} texts are no pairs: give as many of each.")
        tokens = any(self.weights.largest)
        if isinstance(images, Encoded) or isinstance(texts, Encoded):
            image = self._encode(images, tokens, self.encode_images)
            return self._score_encoded(image, self._encode(texts, tokens, self.encode_texts))
        # Tokens of many pairs would fill the memory.
        parts = [
            self._score_encoded(
                self._encode_images(images[start : start + _PAIRS], tokens, first=start),
                self.encode_texts(texts[start : start + _PAIRS], tokens=tokens),
            )
            for start in range(0, len(images), _PAIRS)
        ]
        empty = PairScores(*[np.zeros(0, np.float32)] * 4)
        return PairScores(*(np.concatenate(column) for column in zip(empty, *parts, strict=True)))

    def _score_encoded(self, image: Encoded, text: Encoded) -> PairScores:
        import torch

        from diptych.retrieval.reranking import Weights

        pairs = torch.arange(len(image))
        # An untrained fusion gives numbers too, which mean nothing.
        itm, alignment = self._fuse(image, text, pairs, pairs, None if any(self.weights.largest) else Weights())
        similarity = np.einsum("nd,nd->n", image.embedding, text.embedding)
        score = self.weights.t2i.add(self.logit_scale * (similarity - image.bias - text.bias), itm, alignment)
        return PairScores(similarity, itm, alignment, score.astype(np.float32))

    def rank(
        self,
        queries: Sequence[ImageInput] | Encoded,
        gallery: Sequence[ImageInput] | Encoded,
        k: int = 10,
        rerank: bool = True,
    ) -> Ranking:
        """Return the best k items of the gallery for each query.

        One side is texts, the other images. In a plain sequence a string is a text: give paths of images as `Path`, or
        encode them first by `encode_images`.

        Args:
            queries: Q texts or images, or what `encode_texts` or `encode_images` made of them.
            gallery: the items to rank, likewise.
            k: items to return for a query; all, where the gallery has fewer.
            rerank: whether the fusion re-ranks the first `reranking.top_k` candidates, where it has weights for queries
                of this kind. Encodings need tokens for it.

        Raises:
            DiptychError: k is below 1, both sides are of one kind, tokens are missing, or an image cannot be encoded.
        """
        if k < 1:
            raise DiptychError(f"k is {k}; ask for at least one item.")
        import torch

        from diptych.retrieval.reranking import top_candidates

        weights = self.weights.t2i if _is_text(queries) else self.weights.i2t
        rerank = rerank and any(weights)
        query, item = (self._encode(side, tokens=rerank) for side in (queries, gallery))
        if not len(query) or not len(item):
            return Ranking(np.zeros((len(query), 0), np.int64), np.zeros((len(query), 0), np.float32))
        if (query.offsets is None) == (item.offsets is None):
            raise DiptychError("Texts rank images, and images rank texts: one side has to be of each kind.")
        ranked = np.concatenate([item.embedding, -item.bias[:, None]], axis=1)
        asking = np.concatenate([query.embedding, np.ones((len(query), 1), np.float32)], axis=1)
        depth = max(k, self.reranking.top_k) if rerank else k
        index, similarity = top_candidates(torch.from_numpy(asking), torch.from_numpy(ranked), depth)
        scores = self.logit_scale * (similarity - torch.from_numpy(query.bias)[:, None])
        if rerank:
            index, scores = self._rerank(query, item, index, scores, weights)
        return Ranking(index[:, :k].numpy(), scores[:, :k].float().numpy())

    def probabilities(self, ranking: Ranking) -> NDArray[np.float64] | None:
        """Return the probability that the first image found for each text is the right one, float64 (Q,).

        It was calibrated on val, in a gallery of `calibration.images` images, and is lower among more. None where the
        model has no calibration, and for a gallery without images.
        """
        if self.calibration is None or not ranking.score.size:
            return None
        from diptych.retrieval.calibration import probabilities

        return probabilities(self.calibration, ranking.score)

    def embed(self, split: PreparedSplit, description: str, inputs: Inputs | None = None) -> Embedded:
        """Encode a prepared split, with its query-bank biases.

        Args:
            split: N images and M captions.
            description: label of the progress bar.
            inputs: the split's inputs with features of frozen towers, if there are any.
        """
        from diptych.retrieval.embedding import embed_split

        computing: Any = {"batch_size": self.batch_size, "device": self.device, "description": description}
        return embed_split(self.model, split, inputs=inputs, **computing).biased(self.query_bank, self.logit_scale)

    def evaluate(self, embedded: Embedded, top_k: int) -> Evaluation:
        """Rank a gallery by the towers, with query-bank normalization, and with `top_k` candidates re-ranked."""
        from diptych.retrieval.evaluation import evaluate_gallery

        return evaluate_gallery(self.model, embedded, top_k=top_k, weights=self.weights, device=self.device)

    def _rerank(
        self, query: Encoded, item: Encoded, index: Tensor, scores: Tensor, weights: Weights
    ) -> tuple[Tensor, Tensor]:
        """Order the first candidates (Q, top_k) of `index` (Q, K) by their scores with the fusion; the rest stays."""
        import torch

        first = index[:, : self.reranking.top_k]
        asking = torch.arange(len(query)).repeat_interleave(first.shape[1])
        if query.offsets is None:
            itm, alignment = self._fuse(query, item, asking, first.flatten(), weights)
        else:
            itm, alignment = self._fuse(item, query, first.flatten(), asking, weights)
        parts = (torch.from_numpy(part).view_as(first) for part in (itm, alignment))
        better = weights.add(scores[:, : first.shape[1]], *parts)
        order = better.argsort(dim=1, descending=True, stable=True)
        rest = slice(first.shape[1], None)
        return (
            torch.cat([first.gather(1, order), index[:, rest]], dim=1),
            torch.cat([better.gather(1, order), scores[:, rest]], dim=1),
        )

    def _fuse(
        self, images: Encoded, texts: Encoded, image: Tensor, text: Tensor, weights: Weights | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return ITM logits and token-alignment scores (P,) of the pairs of `image` (P,) and `text` (P,) int64.

        With `weights`, a part without weight is not computed, and is zero.
        """
        from diptych.retrieval.embedding import TokenStates, inference
        from diptych.retrieval.reranking import fuse_pairs

        if images.offsets is not None or texts.offsets is None:
            raise DiptychError("A pair is an image and a text: give the images first.")
        if weights is not None and not any(weights):
            none = np.zeros(len(image), np.float32)
            return none, none
        if images.tokens is None or texts.tokens is None:
            raise DiptychError("Re-ranking reads tokens: encode with tokens=True, or rank with rerank=False.")
        tokens = TokenStates(images.tokens, texts.tokens, texts.offsets)
        with inference(self.model, self.device, "no"):
            logits = fuse_pairs(self.model, tokens, image, text, self.device, weights, "re-rank", delay=_DELAY)
        itm, alignment = logits.numpy()
        return itm, alignment

    def _bias(self, bias: Callable[[Tensor, float], Tensor], embedding: Tensor) -> NDArray[np.float32]:
        if not len(embedding):
            return np.zeros(0, np.float32)
        return bias(embedding.to(self.device), self.logit_scale).cpu().numpy()

    def _encode(self, items: Any, tokens: bool = True, encode: Callable[..., Encoded] | None = None) -> Encoded:
        """Encode a plain sequence, by default as texts where its first item is a string."""
        if isinstance(items, Encoded):
            return items
        by_kind = self.encode_texts if _is_text(items) else self.encode_images
        return (encode or by_kind)(items, tokens=tokens)

    def _pixel_batches(self, images: Sequence[ImageInput], first: int) -> Iterator[NDArray[np.uint8]]:
        """Yield uint8 (B, S, S, 3) batch by batch, decoded by threads."""
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(images), self.batch_size):
                batch = images[start : start + self.batch_size]
                yield np.stack(list(pool.map(self._pixels, count(first + start), batch)))

    def _pixels(self, index: int, image: ImageInput) -> NDArray[np.uint8]:
        """Return the pixels (S, S, 3) of an image as the model reads them."""
        settings = self.preprocessing
        name = str(image) if isinstance(image, str | Path) else f"image {index}"
        try:
            return to_pixels(_open(image), settings.image_size, settings.resize)
        except OSError as error:
            raise ImageInputError(index, name, error.strerror or str(error)) from None
        except (ImageError, ValueError) as error:
            raise ImageInputError(index, name, str(error)) from None

    @staticmethod
    def _progress(description: str, items: int) -> Any:
        return progress(None, description, unit="item", total=items, delay=_DELAY)


def _is_text(items: Any) -> bool:
    """Return whether the items are texts: encoded ones, or a plain sequence that begins with a string."""
    if isinstance(items, Encoded):
        return items.offsets is not None
    return isinstance(items, str) or (len(items) > 0 and isinstance(items[0], str))


def _open(image: ImageInput) -> Image.Image:
    if isinstance(image, str | Path):
        return open_image(Path(image).read_bytes(), MAX_PIXELS)
    if isinstance(image, bytes | bytearray | memoryview):
        return open_image(bytes(image), MAX_PIXELS)
    if not isinstance(image, Image.Image):
        raise ImageError(f"{type(image).__name__} is neither a path nor the bytes of an image nor an opened image")
    # Pillow cannot decode one opened image in several threads, and it may be given several times.
    with _DECODING:
        return to_upright_rgb(image, MAX_PIXELS)


@contextmanager
def _located(source: str | Path) -> Iterator[Path]:
    """Give the folder of the model at `source`; an address such as models:/… is fetched by what serves its scheme.

    The registry offers itself as an entry point, so that this class knows no MLflow.
    """
    scheme, separator, _ = str(source).partition(":/")
    fetchers = entry_points(group=FETCHERS, name=scheme) if separator else ()
    if not fetchers:
        yield Path(source)
        return
    fetch = next(iter(fetchers)).load()
    with fetch(str(source)) as folder:
        yield folder
