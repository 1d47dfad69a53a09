"""Kept features: what the tower says, computed once, and never wrong whatever happens to the folder."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import SIZE, make_model, model_settings, open_prepared, write_prepared

from diptych.data.inputs import StoredImages, StoredTexts
from diptych.data.prepared import PreparedSplit
from diptych.errors import DiptychError
from diptych.model.device import Precision
from diptych.model.dual_encoder import DualEncoder
from diptych.model.towers import Tower
from diptych.training.feature_files import FeatureFiles
from diptych.training.features import GIB, FeatureCache, SharedFeatures

PER_SHARD = 4
CPU = torch.device("cpu")
EVERYTHING = range(12)


def split_of(folder: Path, numbers: Sequence[int], changed: Sequence[int] = (), **settings: str) -> PreparedSplit:
    """Images by their numbers, four a shard, each with one to three captions of three to nine tokens.

    Those in `changed` have another content; `settings` may give another decoding.
    """
    numbers = list(numbers)
    for shard in {number // PER_SHARD for number in numbers}:
        folder.mkdir(exist_ok=True)
        pictures = [picture(shard * PER_SHARD + row) for row in range(PER_SHARD)]
        np.save(folder / f"images-{shard}.npy", np.stack(pictures))
    captions = [(place, token_ids(number, j)) for place, number in enumerate(numbers) for j in range(1 + number % 3)]
    lengths = np.array([len(ids) for _, ids in captions])
    images = {
        "image_id": numbers,
        "source": [f"{number}.png" for number in numbers],
        "shard": [f"images-{number // PER_SHARD}" for number in numbers],
        "row": [number % PER_SHARD for number in numbers],
        "sha256": [f"{number:064x}" if number not in changed else f"{number:f>64x}" for number in numbers],
    }
    return PreparedSplit(
        folder=folder,
        images={name: np.array(values) for name, values in images.items()},
        captions={"caption_id": np.arange(len(captions)), "caption": np.array(["words"] * len(captions))},
        image_of_caption=np.array([place for place, _ in captions]),
        tokens=np.concatenate([ids for _, ids in captions]),
        starts=lengths.cumsum() - lengths,
        lengths=lengths,
        settings={"pad_token_id": 0, "image_size": SIZE, "decoding": "d", **settings},
    )


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def token_ids(number: int, caption: int) -> np.ndarray:
    generator = np.random.default_rng([number, caption])
    return generator.integers(1, 50, 3 + int(generator.integers(7))).astype(np.int32)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def model() -> DualEncoder:
    return make_model()


@pytest.fixture
def split(tmp_path: Path) -> PreparedSplit:
    return split_of(tmp_path / "pixels", EVERYTHING)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


def cache(folder: Path, limit_gib: float = 1.0, precision: Precision = "no") -> FeatureCache:
    return FeatureCache(folder, limit_gib=limit_gib, device=CPU, precision=precision)


def images_of(cached: FeatureCache, model: DualEncoder, *splits: PreparedSplit) -> list[StoredImages]:
    kept = cached.images(model.image_tower, splits)
    assert kept is not None
    return kept


def texts_of(cached: FeatureCache, model: DualEncoder, *splits: PreparedSplit) -> list[StoredTexts]:
    kept = cached.texts(model.text_tower, splits)
    assert kept is not None
    return kept


def slow_image(model: DualEncoder, split: PreparedSplit, image: int) -> torch.Tensor:
    """(N, C), of one image by itself."""
    with torch.no_grad():
        return model.image_tower.features(torch.from_numpy(split.pixels(np.array([image]))))[0]


def slow_text(model: DualEncoder, split: PreparedSplit, caption: int) -> torch.Tensor:
    """(T, L, C), of one caption by itself."""
    ids, mask = split.tokens(np.array([caption]))
    with torch.no_grad():
        return model.text_tower.features(torch.from_numpy(ids), torch.from_numpy(mask))[0]


def equal_but_for_rounding(half: torch.Tensor, exact: torch.Tensor) -> bool:
    """Half precision has eleven significant bits."""
    assert half.dtype == torch.float16
    return torch.allclose(half.float(), exact, rtol=2**-11 * 1.01, atol=1e-6)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def count_computed(monkeypatch: pytest.MonkeyPatch, tower: Tower) -> Counter[str]:
    """Counts what the tower computes from now on."""
    counted: Counter[str] = Counter()
    features: Callable[..., torch.Tensor] = tower.features

    def counting(inputs: torch.Tensor, *rest: Any) -> torch.Tensor:
        counted["items"] += len(inputs)
        return features(inputs, *rest)

    monkeypatch.setattr(tower, "features", counting)
    return counted


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_images_have_the_features_that_the_tower_computes(model: DualEncoder, split: PreparedSplit, kept: Path) -> None:
    (images,) = images_of(cache(kept), model, split)
    for image in range(len(split)):
        assert equal_but_for_rounding(images(np.array([image]))[0], slow_image(model, split, image))


def test_mirror_images_have_features_of_their_own(model: DualEncoder, split: PreparedSplit, kept: Path) -> None:
    (plain,) = images_of(cache(kept), model, split)
    mirrored = cache(kept).images(model.image_tower, [split], mirrored=True)
    assert mirrored is not None
    for image in map(np.array, ([0], [11])):
        with torch.no_grad():
            exact = model.image_tower.features(torch.from_numpy(split.pixels(image)[:, :, ::-1].copy()))
        assert equal_but_for_rounding(mirrored[0](image), exact)
        assert not torch.equal(mirrored[0](image), plain(image))
    assert len(contents(kept)) == 6


def test_a_tower_in_two_parts_has_the_features_of_the_lower_one(
    model: DualEncoder, split: PreparedSplit, kept: Path
) -> None:
    whole = images_of(cache(kept), model, split), texts_of(cache(kept), model, split)
    assert model.image_tower.split(1)
    assert model.text_tower.split(1)
    (images,), (texts,) = images_of(cache(kept), model, split), texts_of(cache(kept), model, split)
    for place in (0, 5, 11):
        assert equal_but_for_rounding(images(np.array([place]))[0], slow_image(model, split, place))
        features, mask = texts(np.array([place]))
        assert equal_but_for_rounding(features[0], slow_text(model, split, place))
        assert features.ndim == 3
        assert mask.all()
    assert whole[0][0](np.array([0])).shape != images(np.array([0])).shape


def test_of_a_tower_in_two_parts_all_is_made_from_what_is_kept_of_the_lower_one(
    model: DualEncoder, split: PreparedSplit, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = split_of(tmp_path / "pixels", range(8, 20))
    images = [slow_image(model, some, place) for some in (split, other) for place in (0, 11)]
    texts = [slow_text(model, some, place) for some in (split, other) for place in (0, 11)]
    assert model.image_tower.split(1)
    assert model.text_tower.split(1)
    images_of(cache(kept), model, split, other)
    texts_of(cache(kept), model, split, other)
    below = set(contents(kept))
    counted = [count_computed(monkeypatch, tower) for tower in (model.image_tower, model.text_tower)]
    made = cache(kept)
    some_images = made.images(model.image_tower, [split, other], whole=True)
    some_texts = made.texts(model.text_tower, [split, other], whole=True)
    assert some_images
    assert some_texts
    assert [count["items"] for count in counted] == [0, 0]
    for of_images, of_texts in zip(some_images, some_texts, strict=True):
        for place in map(np.array, ([0], [11])):
            # Half precision has rounded twice.
            torch.testing.assert_close(of_images(place)[0].float(), images.pop(0), rtol=4e-3, atol=4e-3)
            torch.testing.assert_close(of_texts(place)[0][0].float(), texts.pop(0), rtol=4e-3, atol=4e-3)
    assert below < set(contents(kept))
    assert model.image_tower.feature_shape != model.image_tower.whole_shape


def test_what_is_made_from_the_lower_part_is_found_unless_the_upper_one_has_learned(
    model: DualEncoder, split: PreparedSplit, kept: Path
) -> None:
    assert model.text_tower.split(1)
    cache(kept).texts(model.text_tower, [split], whole=True)
    first = set(contents(kept))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FeatureFiles, "write", lambda *_: pytest.fail("it was computed again"))
        assert cache(kept).texts(model.text_tower, [split], whole=True)
    with torch.no_grad():
        next(model.text_tower.backbone.get_submodule("encoder.layer.1").parameters()).add_(0.1)
    cache(kept).texts(model.text_tower, [split], whole=True)
    # Three blocks of the lower part, three of the whole before, three of the whole now.
    assert [len(first), len(set(contents(kept)) - first)] == [6, 3]


def test_where_the_lower_part_does_not_fit_nothing_is_made_from_it(
    model: DualEncoder, split: PreparedSplit, kept: Path
) -> None:
    assert model.image_tower.split(1)
    assert cache(kept, limit_gib=1e-9).images(model.image_tower, [split], whole=True) is None


def test_what_was_needed_for_the_whole_alone_makes_room(model: DualEncoder, split: PreparedSplit, kept: Path) -> None:
    """So where both do not fit at once, the whole is kept as if it had been made from pixels."""
    whole = cache(kept)
    assert whole.images(model.image_tower, [split])
    needed = sum(whole.files.used.values())
    assert model.image_tower.split(1)
    both = cache(kept)
    assert both.images(model.image_tower, [split], whole=True)
    assert sum(both.files.used.values()) == needed
    small = cache(kept.with_name("small"))
    small.files.limit = needed
    assert small.images(model.image_tower, [split], whole=True) is None
    model.image_tower.join()
    assert small.images(model.image_tower, [split])


def test_images_come_in_the_order_asked_for_and_as_often(model: DualEncoder, split: PreparedSplit, kept: Path) -> None:
    (images,) = images_of(cache(kept), model, split)
    order = np.array([11, 0, 7, 0, 3, 11])
    assert torch.equal(images(order), torch.cat([images(order[i : i + 1]) for i in range(len(order))]))


def test_captions_have_the_features_that_the_tower_computes_and_zero_beyond(
    model: DualEncoder, split: PreparedSplit, kept: Path
) -> None:
    (texts,) = texts_of(cache(kept), model, split)
    order = np.array([20, 3, 0, 3, 11, 7])
    features, mask = texts(order)
    assert torch.equal(mask, torch.from_numpy(split.tokens(order)[1]))
    assert features[~mask].count_nonzero() == 0
    for row, caption in enumerate(order):
        assert equal_but_for_rounding(features[row, mask[row]], slow_text(model, split, caption))


def test_splits_that_share_a_shard_have_blocks_of_their_own(model: DualEncoder, kept: Path, tmp_path: Path) -> None:
    splits = [split_of(tmp_path / "pixels", EVERYTHING[start::2]) for start in (0, 1)]
    for split, images, texts in zip(
        splits, images_of(cache(kept), model, *splits), texts_of(cache(kept), model, *splits), strict=True
    ):
        last = np.array([len(split) - 1])
        assert equal_but_for_rounding(images(last)[0], slow_image(model, split, last[0]))
        for caption in range(len(split.captions)):
            features, _ = texts(np.array([caption]))
            assert equal_but_for_rounding(features[0], slow_text(model, split, caption))
    assert len(contents(kept)) == 2 * 2 * 3


def test_parts_share_features_that_are_those_of_their_own(
    model: DualEncoder, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = open_prepared(write_prepared(tmp_path / "p", train=8, val=4, test=0))
    computed = count_computed(monkeypatch, model.image_tower), count_computed(monkeypatch, model.text_tower)
    whole, parts = prepared.part(np.arange(12)), [prepared.part(np.arange(first, 12, 2)) for first in (0, 1)]
    stored = []
    for part in parts:
        shared = SharedFeatures(whole, kept, limit_gib=1.0, device=CPU, precision="no")
        stored.append((images_of(shared, model, part)[0], texts_of(shared, model, part)[0]))
    assert [counts["items"] for counts in computed] == [len(whole), len(whole.captions)]
    for part, (images, texts) in zip(parts, stored, strict=True):
        for image in range(len(part)):
            assert equal_but_for_rounding(images(np.array([image]))[0], slow_image(model, part, image))
        for caption in range(len(part.captions)):
            assert equal_but_for_rounding(texts(np.array([caption]))[0][0], slow_text(model, part, caption))


def test_what_is_there_is_not_computed_again(
    model: DualEncoder, split: PreparedSplit, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images_of(cache(kept), model, split)
    texts_of(cache(kept), model, split)
    for tower in (model.image_tower, model.text_tower):
        monkeypatch.setattr(tower, "features", None)
    images_of(cache(kept), model, split)
    texts_of(cache(kept), model, split)


def test_one_cache_may_be_asked_twice_for_the_same(model: DualEncoder, split: PreparedSplit, kept: Path) -> None:
    """What is used already counts once towards the limit."""
    images_of(cache(kept), model, split)
    size = sum(map(len, contents(kept).values()))
    cached = cache(kept, limit_gib=1.5 * size / GIB)
    for _ in range(2):
        images_of(cached, model, split)


def test_a_new_shard_is_all_that_is_computed(
    model: DualEncoder, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, grown = (split_of(tmp_path / "pixels", range(count)) for count in (8, 12))
    images_of(cache(kept), model, before)
    texts_of(cache(kept), model, before)
    pictures, captions = (count_computed(monkeypatch, tower) for tower in (model.image_tower, model.text_tower))
    (images,) = images_of(cache(kept), model, grown)
    texts_of(cache(kept), model, grown)
    assert (pictures["items"], captions["items"]) == (4, len(grown.captions) - len(before.captions))
    assert equal_but_for_rounding(images(np.array([9]))[0], slow_image(model, grown, 9))


def test_other_weights_precision_or_content_make_other_features(
    model: DualEncoder, kept: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels, numbers = tmp_path / "pixels", range(4)
    one_layer = model_settings().text_tower.model_dump(exclude_unset=True) | {"layers": 1}
    seen = 0
    images: list[tuple[DualEncoder, Precision, PreparedSplit]] = [
        (model, "no", split_of(pixels, numbers)),
        (make_model(seed=1), "no", split_of(pixels, numbers)),
        (model, "bf16", split_of(pixels, numbers)),
        (model, "no", split_of(pixels, numbers, decoding="e")),
        (model, "no", split_of(pixels, numbers, changed=[2])),
        (model, "no", split_of(pixels, [0, 1, 3, 2])),
    ]
    for made, precision, split in images:
        images_of(cache(kept, precision=precision), made, split)
        assert len(contents(kept)) == (seen := seen + 1)
    texts: list[tuple[DualEncoder, Precision, PreparedSplit]] = [
        *((made, precision, split) for made, precision, split in images[:3]),
        (model, "no", split_of(pixels, [0, 1, 3])),
        (make_model(text_tower=one_layer), "no", split_of(pixels, numbers)),
    ]
    for made, precision, split in texts:
        texts_of(cache(kept, precision=precision), made, split)
        assert len(contents(kept)) == (seen := seen + 1)
    assert not warnings_in(caplog)


def test_a_damaged_file_is_made_anew_with_a_warning(
    model: DualEncoder, kept: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = split_of(tmp_path / "pixels", range(8))
    images_of(cache(kept), model, split)
    before = contents(kept)
    name = min(before)
    (kept / name).write_bytes(before[name][:-1])
    images_of(cache(kept), model, split)
    assert contents(kept) == before
    assert warnings_in(caplog) == [f"{kept / name} is damaged and is computed anew."]


def test_what_another_run_removes_meanwhile_is_made_anew(
    model: DualEncoder, split: PreparedSplit, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images_of(cache(kept), model, split)
    before = contents(kept)
    for path in kept.iterdir():
        path.unlink()

    def evict() -> None:
        for path in [*kept.iterdir()][:2]:
            path.unlink()

    monkeypatch.setattr("diptych.training.features.wait_for_all", evict)
    images_of(cache(kept), model, split)
    assert contents(kept) == before


def test_the_leftover_of_a_killed_writer_is_swept(model: DualEncoder, split: PreparedSplit, kept: Path) -> None:
    kept.mkdir()
    leftover = kept / f".abc.npy.{2**22 + 1}.tmp"
    leftover.touch()
    images_of(cache(kept), model, split)
    assert not leftover.exists()


def test_processes_fill_one_folder_at_once(model: DualEncoder, kept: Path, tmp_path: Path) -> None:
    """Forked, so that both are at it within moments; each sees nothing there and then the other's files."""
    split = split_of(tmp_path / "pixels", EVERYTHING)
    images_of(cache(tmp_path / "alone"), model, split)
    texts_of(cache(tmp_path / "alone"), model, split)
    children = []
    for _ in range(2):
        child = os.fork()
        if not child:
            try:
                for _ in range(3):
                    images_of(cache(kept), model, split)
                    texts_of(cache(kept), model, split)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    assert contents(kept) == contents(tmp_path / "alone")


def test_more_than_the_limit_is_not_kept_and_the_warning_says_the_sizes(
    model: DualEncoder, split: PreparedSplit, kept: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert cache(kept, limit_gib=1e-9).images(model.image_tower, [split]) is None
    assert "image features are not kept: 0.0 GiB, but train.features_gib allows 0.0 and the disk has" in caplog.text
    assert not kept.exists()


def test_processes_that_train_together_keep_features_only_if_all_of_them_have_room(
    two_processes: tuple[Path, Callable[[str], tuple[bool, bool]]],
) -> None:
    assert two_processes[1]("room") == (False, False)


def test_more_than_the_disk_has_is_not_kept(
    model: DualEncoder,
    split: PreparedSplit,
    kept: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    assert cache(kept).texts(model.text_tower, [split]) is None
    assert "the disk has 0.0 free" in caplog.text


def test_what_was_used_longest_ago_makes_room_and_never_what_this_run_uses(
    model: DualEncoder, kept: Path, tmp_path: Path
) -> None:
    first, second, third = (split_of(tmp_path / "pixels", range(start, start + 4)) for start in (0, 4, 8))
    names: list[str] = []
    for age, split in ((300, first), (200, second)):
        images_of(cache(kept), model, split)
        (name,) = set(contents(kept)) - set(names)
        names.append(name)
        os.utime(kept / name, (time.time() - age,) * 2)
    size = (kept / names[0]).stat().st_size
    images_of(cache(kept), model, first)
    cached = cache(kept, limit_gib=2.5 * size / GIB)
    images_of(cached, model, third)
    assert names[0] in contents(kept)
    assert names[1] not in contents(kept)
    texts_of(cached, model, third)
    assert len(contents(kept)) == 2


@pytest.mark.parametrize("value", [1e5, float("nan")])
def test_features_beyond_half_precision_are_an_error(
    model: DualEncoder, split: PreparedSplit, kept: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    features = model.image_tower.features
    monkeypatch.setattr(model.image_tower, "features", lambda pixels: features(pixels) + value)
    with pytest.raises(DiptychError, match=r"beyond half precision; set train\.keep_features to never"):
        cache(kept).images(model.image_tower, [split])
    assert list(kept.glob("*")) == []


def test_the_tower_is_left_in_the_mode_in_which_it_came(model: DualEncoder, split: PreparedSplit, kept: Path) -> None:
    model.train()
    images_of(cache(kept), model, split)
    assert model.image_tower.backbone.training


def test_a_compiled_tower_has_the_features_of_one_that_is_not(
    model: DualEncoder, split: PreparedSplit, kept: Path, tmp_path: Path
) -> None:
    images_of(cache(tmp_path / "plain"), model, split)
    model.image_tower.backbone.compile(backend=lambda graph, inputs: pytest.fail("it was compiled"))
    images_of(cache(kept), model, split)
    assert contents(kept) == contents(tmp_path / "plain")
