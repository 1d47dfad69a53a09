"""The text tower's tokenizer."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from diptych.config import TextTower
from diptych.data import tokenization
from diptych.data.tokenization import (
    SPECIAL_TOKENS,
    copy_tokenizer,
    encode,
    learn_tokenizer,
    save_tokenizer,
    vocabulary_facts,
)
from diptych.errors import DiptychError

CAPTIONS = [
    f"{size} {colour} {shape}s near a {shape}, quickly"
    for size in ("Big", "tiny", "Größte")
    for colour in ("red", "blue", "greenish")
    for shape in ("circle", "square", "שלום")
]
LEARN = (
    "import sys, hashlib; from diptych.data.tokenization import learn_tokenizer; "
    "print(hashlib.sha256(learn_tokenizer(sys.argv[1:], 120).to_str().encode()).hexdigest())"
)


@pytest.fixture
def learned(tmp_path: Path) -> Path:
    save_tokenizer(learn_tokenizer(CAPTIONS, 200), tmp_path / "learned", 16)
    return tmp_path / "learned"


def test_special_tokens_come_first() -> None:
    tokenizer = learn_tokenizer(CAPTIONS, 200)
    assert [tokenizer.id_to_token(number) for number in range(5)] == list(SPECIAL_TOKENS.values())


def test_the_vocabulary_is_no_larger_than_asked() -> None:
    assert learn_tokenizer(CAPTIONS, 100).get_vocab_size() <= 100


def test_many_scripts_leave_room_for_words() -> None:
    captions = ["the dog runs"] * 5 + [chr(number) * 3 for number in range(0x4E00, 0x4E00 + 500)]
    vocabulary = learn_tokenizer(captions, 100).get_vocab()
    assert len(vocabulary) <= 100
    assert "dog" in vocabulary


def test_two_processes_learn_the_same_bytes() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", LEARN, *CAPTIONS], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    here = hashlib.sha256(learn_tokenizer(CAPTIONS, 120).to_str().encode()).hexdigest()
    assert {run.strip() for run in runs} == {here}


def test_batches_make_no_difference(learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabulary, encoded = learn_tokenizer(CAPTIONS, 120).to_str(), encode(learned, CAPTIONS, 16)
    monkeypatch.setattr(tokenization, "_BATCH", 3)
    assert learn_tokenizer(CAPTIONS, 120).to_str() == vocabulary
    for in_batches, at_once in zip(encode(learned, CAPTIONS, 16), encoded, strict=True):
        np.testing.assert_array_equal(in_batches, at_once)


def test_captions_are_encoded_one_after_the_other(learned: Path) -> None:
    flat, offsets = encode(learned, ["Big red circles", "tiny"], 16)
    assert flat.dtype == np.int32
    assert offsets.dtype == np.int64
    assert offsets[0] == 0
    assert offsets[-1] == len(flat)
    for start, end in pairwise(offsets):
        assert flat[start] == 2
        assert flat[end - 1] == 3


def test_long_captions_are_cut_and_still_end_in_sep(learned: Path) -> None:
    flat, offsets = encode(learned, ["red " * 100], 8)
    assert offsets.tolist() == [0, 8]
    assert flat[-1] == 3


def test_no_captions_are_no_tokens(learned: Path) -> None:
    flat, offsets = encode(learned, [], 8)
    assert len(flat) == 0
    assert offsets.tolist() == [0]


def test_transformers_encodes_the_same_ids(learned: Path) -> None:
    from transformers import AutoTokenizer

    text = "BIG Größte reddish שלום 🤗 circles, unseenword " * 3
    theirs = AutoTokenizer.from_pretrained(learned)
    assert encode(learned, [text], 12)[0].tolist() == theirs(text, truncation=True, max_length=12)["input_ids"]
    assert (len(theirs), theirs.pad_token_id) == vocabulary_facts(learned)


def test_unknown_scripts_become_unk_instead_of_failing(learned: Path) -> None:
    assert encode(learned, ["猫"], 8)[0].tolist() == [2, 1, 3]


def make_bert(folder: Path) -> Path:
    """A tower's folder as google-bert/bert-base-uncased has it: the configuration says which class it is."""
    folder.mkdir()
    words = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "circle", "##s"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    (folder / "config.json").write_text(
        '{"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 12}'
    )
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "model_max_length": 512}')
    return folder


def test_a_pretrained_tower_brings_its_own_tokenizer(tmp_path: Path) -> None:
    source = make_bert(tmp_path / "bert")
    copy_tokenizer(TextTower(pretrained=str(source)), tmp_path / "copy", 40)
    assert encode(tmp_path / "copy", ["A red circles"], 8)[0].tolist() == [3, 6, 7, 8, 9, 4]
    assert vocabulary_facts(tmp_path / "copy") == (10, 0)


def test_the_copy_does_not_tell_where_it_came_from(tmp_path: Path) -> None:
    for name in ("here", "there"):
        tower = TextTower(pretrained=str(make_bert(tmp_path / name)))
        copy_tokenizer(tower, tmp_path / f"copy-{name}", 40)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "copy-here" / file).read_bytes() == (tmp_path / "copy-there" / file).read_bytes()


def test_the_copy_loads_without_the_towers_configuration(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    copy_tokenizer(TextTower(pretrained=str(make_bert(tmp_path / "bert"))), tmp_path / "copy", 40)
    assert AutoTokenizer.from_pretrained(tmp_path / "copy")("a red")["input_ids"] == [3, 6, 7, 4]


def test_a_tower_without_a_tokenizer_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(DiptychError, match="no tokenizer"):
        copy_tokenizer(TextTower(pretrained=str(tmp_path / "bert")), tmp_path / "copy", 40)


def test_the_tokenizer_of_another_model_is_an_error(tmp_path: Path) -> None:
    (make_bert(tmp_path / "bert") / "config.json").write_text('{"model_type": "bert", "vocab_size": 9}')
    with pytest.raises(DiptychError, match=r"bert: the tokenizer has 10 tokens, but the model .* has 9"):
        copy_tokenizer(TextTower(pretrained=str(tmp_path / "bert")), tmp_path / "copy", 40)


def test_more_tokens_than_the_tower_has_places_for_are_an_error(tmp_path: Path) -> None:
    tower = TextTower(pretrained=str(make_bert(tmp_path / "bert")))
    copy_tokenizer(tower, tmp_path / "copy", 512)
    with pytest.raises(DiptychError, match=r"max_tokens is 513, but .* has only 512 positions"):
        copy_tokenizer(tower, tmp_path / "other", 513)


def test_a_tokenizer_without_padding_is_an_error(learned: Path) -> None:
    settings = learned / "tokenizer_config.json"
    settings.write_text(json.dumps({"pad_token": None}))
    with pytest.raises(DiptychError, match="padding"):
        vocabulary_facts(learned)


@pytest.mark.parametrize("size", [0, 30522])
def test_a_tower_without_a_tokenizer_or_with_a_fraction_of_one_is_an_error(tmp_path: Path, size: int) -> None:
    """Transformers would make one that knows no word."""
    source = make_bert(tmp_path / "bert")
    if size:
        (source / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": size}))
    else:
        (source / "vocab.txt").unlink()
    with pytest.raises(DiptychError, match="10 tokens, but the model .* has 30522" if size else "holds no tokenizer"):
        copy_tokenizer(TextTower(pretrained=str(source)), tmp_path / "copy", 40)
