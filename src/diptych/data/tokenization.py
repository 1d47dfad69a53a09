"""Tokenizer of the text tower: a WordPiece vocabulary learned from the captions, or that of the pretrained tower."""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from diptych.config import TextTower
from diptych.data.accepted import CaptionTexts
from diptych.data.pretrained import locate
from diptych.errors import DiptychError
from diptych.files import write_json

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
"""Special tokens of a learned vocabulary; their ids are 0 to 4."""

_BATCH = 10_000
"""Number of captions in a batch: enough to keep the tokenizer's threads busy, and few enough for memory."""


def learn_tokenizer(captions: Sequence[str] | CaptionTexts, vocabulary_size: int) -> Tokenizer:
    """Return an uncased BERT tokenizer whose WordPiece vocabulary is learned from `captions`.

    The same captions give the same vocabulary, in any process and with any number of threads.

    Args:
        captions: iterated twice, a batch at a time.
        vocabulary_size: largest number of tokens.

    Returns:
        A tokenizer with at most `vocabulary_size` tokens, the special ones first.
    """
    alphabet, continuing = _alphabet(captions, vocabulary_size // 4)
    tokenizer = _bert_tokenizer({})
    tokenizer.train_from_iterator(
        _batches(captions),
        trainers.WordPieceTrainer(
            vocab_size=vocabulary_size,
            min_frequency=2,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            # The trainer numbers "##x" in the order of a hash map, which differs between processes, and breaks ties by
            # number (huggingface/tokenizers#1794). Special tokens are numbered first, in the order given here.
            special_tokens=[*SPECIAL_TOKENS.values(), *(f"##{character}" for character in continuing)],
            show_progress=False,
        ),
    )
    return _bert_tokenizer(tokenizer.get_vocab(with_added_tokens=False))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    """Write a learned tokenizer as a folder that AutoTokenizer of transformers loads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens, **SPECIAL_TOKENS}
    write_json(folder / "tokenizer_config.json", settings)


def copy_tokenizer(tower: TextTower, folder: Path, max_tokens: int) -> None:
    """Write the tokenizer of a pretrained text tower to `folder`; the copy does not depend on the tower.

    Raises:
        DiptychError: the tower is missing (see `locate`), has no tokenizer or that of another model, or has fewer than
            `max_tokens` positions.
    """
    from transformers import AutoConfig, AutoTokenizer

    source = locate(tower)
    lacking = f"{source} holds no tokenizer that transformers can load"
    advice = "Add the tokenizer.json and tokenizer_config.json that belong to the model."
    # For a folder without a tokenizer, transformers returns a tokenizer with an empty vocabulary.
    if not any(path for pattern in ("tokenizer.json", "vocab.*", "*.model") for path in source.glob(pattern)):
        raise DiptychError(f"{lacking}. {advice}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, use_fast=True)
        configuration = AutoConfig.from_pretrained(source, local_files_only=True)
    except Exception as error:  # each architecture checks its fields differently
        raise DiptychError(f"{lacking} ({error}). {advice}") from None
    vocabulary_size = getattr(configuration, "vocab_size", len(tokenizer))
    if not vocabulary_size / 2 < len(tokenizer) <= vocabulary_size:
        raise DiptychError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, but the model of config.json has "
            f"{vocabulary_size}. Put the tokenizer of the model there."
        )
    positions = min(tokenizer.model_max_length, getattr(configuration, "max_position_embeddings", max_tokens))
    if positions < max_tokens:
        raise DiptychError(
            f"params.yaml: preprocess.max_tokens is {max_tokens}, but the text tower in {source} has only "
            f"{positions} positions."
        )
    tokenizer.save_pretrained(folder)
    _forget_origin(folder / "tokenizer_config.json")


def encode(folder: Path, captions: Iterable[str], max_tokens: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Encode `captions` with the tokenizer in `folder` as [CLS] … [SEP], each cut to `max_tokens` in all.

    Returns:
        Token ids int32 (T,), concatenated, and offsets int64 (captions + 1,), at which the captions begin.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    # An array grows in place, while a list of parts would be copied when they are joined.
    flat, lengths = array("i"), array("i", [0])
    for batch in _batches(captions):
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(batch)]
        flat.extend(chain.from_iterable(ids))
        lengths.extend(map(len, ids))
    return np.asarray(flat, np.int32), np.cumsum(lengths, dtype=np.int64)


def vocabulary_facts(folder: Path) -> tuple[int, int]:
    """Return the number of tokens and the id of the padding token of the tokenizer in `folder`.

    Raises:
        DiptychError: the tokenizer has no padding token.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    padding = tokenizer.token_to_id(settings.get("pad_token") or "")
    if padding is None:
        raise DiptychError(f"The tokenizer in {folder} has no padding token. Use the tokenizer of a BERT-family tower.")
    return tokenizer.get_vocab_size(), padding


def _bert_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    """Return a tokenizer of `vocabulary` with BERT's uncased normalization, its splitting, and [CLS] … [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    if vocabulary:
        tokenizer.add_special_tokens(list(SPECIAL_TOKENS.values()))
        ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
        )
    return tokenizer


def _alphabet(captions: Iterable[str], limit: int) -> tuple[list[str], list[str]]:
    """Return the `limit` most frequent characters of the captions' words, and those of them that continue a word."""
    words = _count_words(captions)
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    alphabet = sorted(sorted(counts, key=lambda character: (-counts[character], character))[:limit])
    continuing = {character for word in words for character in word[1:]}
    return alphabet, [character for character in alphabet if character in continuing]


def _count_words(captions: Iterable[str]) -> Counter[str]:
    """Count each word after BERT's normalization and splitting."""
    tokenizer = _bert_tokenizer({})
    chunks: Counter[str] = Counter()
    for batch in _batches(captions):
        chunks.update(tokenizer.normalizer.normalize_str("\n".join(batch)).split())
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(chunk):
            words[word] += count
    return words


def _batches(captions: Iterable[str]) -> Iterator[list[str]]:
    texts = iter(captions)
    while batch := list(islice(texts, _BATCH)):
        yield batch


def _forget_origin(settings_file: Path) -> None:
    """Remove the path from which the tokenizer was loaded, because it differs between machines."""
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    for key in ("name_or_path", "tokenizer_file", "vocab_file", "is_local", "local_files_only"):
        settings.pop(key, None)
    write_json(settings_file, settings)
