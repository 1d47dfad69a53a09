"""The text tower's tokenizer: a WordPiece vocabulary learned from the captions, or the pretrained tower's own."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from diptych.config import TextTower
from diptych.data.pretrained import locate
from diptych.errors import DiptychError
from diptych.files import SUMS, atomic_path, remove, sums_hold, write_json, write_sums

_log = logging.getLogger(__name__)

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
"""Of a learned vocabulary, ids 0 to 4."""

_BATCH = 10_000
"""Captions handed over at once: enough to keep the tokenizer's threads busy, little enough to hold in memory."""


def learn_tokenizer(captions: Sequence[str], vocabulary_size: int) -> Tokenizer:
    """An uncased BERT tokenizer whose WordPiece vocabulary fits `captions`.

    The same captions give the same vocabulary, whatever the process or the number of threads.

    Returns:
        A tokenizer with at most `vocabulary_size` tokens, the special ones first.
    """
    alphabet, continuing = _alphabet(captions, vocabulary_size // 4)
    tokenizer = _bert_tokenizer({})
    tokenizer.train_from_iterator(
        captions,
        trainers.WordPieceTrainer(
            vocab_size=vocabulary_size,
            min_frequency=2,
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            # The trainer numbers "##x" in the order of a hash map, which differs from process to process, and breaks
            # ties by number (huggingface/tokenizers#1794). What is given as special is numbered first, in this order.
            special_tokens=[*SPECIAL_TOKENS.values(), *(f"##{character}" for character in continuing)],
            show_progress=False,
        ),
    )
    return _bert_tokenizer(tokenizer.get_vocab(with_added_tokens=False))


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_tokens: int) -> None:
    """Writes a learned tokenizer as a folder that transformers' AutoTokenizer loads."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_tokens, **SPECIAL_TOKENS}
    write_json(folder / "tokenizer_config.json", settings)


def copy_tokenizer(tower: TextTower, folder: Path, max_tokens: int, *, cache: Path) -> None:
    """Writes the tokenizer of a pretrained text tower to `folder`, complete in itself.

    The last copy stays in `cache`, under a key of what it was made from: transformers takes seconds to import.

    Raises:
        DiptychError: the tower is not there (see `locate`), brings no tokenizer or that of another model, or has no
            place for `max_tokens`.
    """
    source = locate(tower)
    kept = cache / _copy_key(source, max_tokens)
    if not _is_sound(kept):
        remove(cache)
        with atomic_path(kept) as copy:
            _copy_anew(source, copy, max_tokens)
            write_sums(copy)
    shutil.copytree(kept, folder, ignore=shutil.ignore_patterns(SUMS))


def _copy_anew(source: Path, folder: Path, max_tokens: int) -> None:
    from transformers import AutoConfig, AutoTokenizer

    lacking = f"{source} holds no tokenizer that transformers can load"
    advice = "Add the tokenizer.json and tokenizer_config.json that belong to the model."
    # Of a folder without one transformers makes a tokenizer that knows no word.
    if not any(path for pattern in ("tokenizer.json", "vocab.*", "*.model") for path in source.glob(pattern)):
        raise DiptychError(f"{lacking}. {advice}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, use_fast=True)
        configuration = AutoConfig.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise DiptychError(f"{lacking} ({error}). {advice}") from None
    known = getattr(configuration, "vocab_size", len(tokenizer))
    if not known / 2 < len(tokenizer) <= known:
        raise DiptychError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, but the model of config.json knows {known}. "
            "Put the tokenizer there that belongs to the model."
        )
    places = min(tokenizer.model_max_length, getattr(configuration, "max_position_embeddings", max_tokens))
    if places < max_tokens:
        raise DiptychError(
            f"params.yaml: preprocess.max_tokens is {max_tokens}, but the text tower in {source} has places for "
            f"{places}."
        )
    tokenizer.save_pretrained(folder)
    _forget_origin(folder / "tokenizer_config.json")


def encode(folder: Path, captions: Sequence[str], max_tokens: int) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Token ids of `captions` with the tokenizer in `folder`: [CLS] … [SEP], cut to `max_tokens` in all.

    Returns:
        Token ids int32 (T,), one caption after the other, and offsets int64 (captions + 1,) of their beginnings.
    """
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    flat, lengths = [np.zeros(0, np.int32)], [0]
    for batch in _batches(captions):
        ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(batch)]
        flat.append(np.fromiter(chain.from_iterable(ids), np.int32))
        lengths.extend(map(len, ids))
    return np.concatenate(flat), np.cumsum(lengths, dtype=np.int64)


def vocabulary_facts(folder: Path) -> tuple[int, int]:
    """Number of tokens, and the id of the padding token, of the tokenizer in `folder`."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    padding = tokenizer.token_to_id(settings.get("pad_token") or "")
    if padding is None:
        raise DiptychError(f"The tokenizer in {folder} has no padding token. Use that of a BERT-family tower.")
    return tokenizer.get_vocab_size(), padding


def _copy_key(source: Path, max_tokens: int) -> str:
    """What a copy depends on: all files of a tower but its weights, transformers, and this file's code."""
    files = sorted(file for pattern in ("*.json", "*.txt", "*.model") for file in source.glob(pattern))
    content = [[file.name, hashlib.sha256(file.read_bytes()).hexdigest()] for file in [*files, Path(__file__)]]
    how = [max_tokens, version("transformers"), version("tokenizers"), content]
    return hashlib.sha256(json.dumps(how).encode()).hexdigest()


def _is_sound(copy: Path) -> bool:
    """Whether the kept copy is there and can be read."""
    sound = copy.is_dir() and sums_hold(copy)
    if copy.exists() and not sound:
        _log.warning("%s is damaged and is made anew.", copy)
    return sound


def _bert_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    """BERT's uncased normalization, splitting and [CLS] … [SEP] around `vocabulary`."""
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


def _alphabet(captions: Sequence[str], limit: int) -> tuple[list[str], list[str]]:
    """The `limit` most frequent characters of the captions' words, and those of them that continue a word."""
    words = _count_words(captions)
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            counts[character] += count
    alphabet = sorted(sorted(counts, key=lambda character: (-counts[character], character))[:limit])
    continuing = {character for word in words for character in word[1:]}
    return alphabet, [character for character in alphabet if character in continuing]


def _count_words(captions: Sequence[str]) -> Counter[str]:
    """How often each word occurs after BERT's normalization and splitting."""
    tokenizer = _bert_tokenizer({})
    chunks: Counter[str] = Counter()
    for batch in _batches(captions):
        chunks.update(tokenizer.normalizer.normalize_str("\n".join(batch)).split())
    words: Counter[str] = Counter()
    for chunk, count in chunks.items():
        for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(chunk):
            words[word] += count
    return words


def _batches(captions: Sequence[str]) -> Iterator[list[str]]:
    return (list(captions[start : start + _BATCH]) for start in range(0, len(captions), _BATCH))


def _forget_origin(settings_file: Path) -> None:
    """Takes out where the tokenizer was loaded from, a path that differs from machine to machine."""
    settings = json.loads(settings_file.read_text(encoding="utf-8"))
    for key in ("name_or_path", "tokenizer_file", "vocab_file", "is_local", "local_files_only"):
        settings.pop(key, None)
    write_json(settings_file, settings)
