"""Pixels that only a store has: the same as from the disk, each row fetched once, within the size of the cache."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import shell
from memory_store import MemoryStore

from diptych.data import stored_pixels
from diptych.data.cache_folder import LIMIT, cache_folder
from diptych.data.stored import Range, StoredFile
from diptych.data.stored_pixels import StoredPixels, Wanted, fill
from diptych.data.workers import in_processes
from diptych.errors import DiptychError

SIZE, COUNT, FILES = 64, 20, 3
ROW = SIZE * SIZE * 3
"""Three blocks of a disk, so that little of the size on it is rounding."""


@pytest.fixture(autouse=True)
def _no_folder_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    cache_folder.cache_clear()
    stored_pixels._warn_once.cache_clear()  # noqa: SLF001


@pytest.fixture
def arrays() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(256, size=(COUNT, SIZE, SIZE, 3), dtype=np.uint8) for _ in range(FILES)]


@pytest.fixture
def store(tmp_path: Path, arrays: list[np.ndarray]) -> MemoryStore:
    made = MemoryStore(tmp_path / "cache")
    for index, array in enumerate(arrays):
        np.save(tmp_path / f"{index}.npy", array)
        made.take(tmp_path / f"{index}.npy")
    return made


def files(store: MemoryStore) -> list[StoredPixels]:
    return [StoredPixels(StoredFile(path, key, store), SIZE) for path, key in store.keys.items()]


def read(opened: list[StoredPixels], wanted: list[tuple[int, int]]) -> np.ndarray:
    """The images at (file, row), in this order."""
    batch = np.zeros((len(wanted), SIZE, SIZE, 3), np.uint8)
    of_file = [[(row, at) for at, (one, row) in enumerate(wanted) if one == index] for index in range(len(opened))]
    pairs = zip(opened, of_file, strict=True)
    fill(batch, [Wanted(one, *np.array(rows, np.int64).T) for one, rows in pairs if rows])
    return batch


def epoch(seed: int) -> list[tuple[int, int]]:
    """All images, in an order of their own."""
    return [divmod(int(image), COUNT) for image in np.random.default_rng(seed).permutation(FILES * COUNT)]


def expected(arrays: list[np.ndarray], wanted: list[tuple[int, int]]) -> np.ndarray:
    return np.stack([arrays[file][row] for file, row in wanted])


def test_images_are_those_of_the_files_in_any_order_and_repeated(store: MemoryStore, arrays: list[np.ndarray]) -> None:
    wanted = [(2, 5), (0, 19), (2, 5), (0, 0), (2, 4), (1, 7)]
    assert np.array_equal(read(files(store), wanted), expected(arrays, wanted))


def test_a_batch_costs_two_round_trips_at_first_and_then_one(store: MemoryStore) -> None:
    opened = files(store)
    read(opened, [(0, 1), (1, 3), (2, 0)])
    assert [len(call) for call in store.calls] == [3, 3]  # headers, rows
    read(opened, [(0, 2), (2, 1)])
    assert [len(call) for call in store.calls[2:]] == [2]


def test_neighbouring_rows_are_one_request_up_to_a_length(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_pixels, "_LONGEST", 3 * ROW)
    read(files(store), [(0, row) for row in (0, 9, 5, 6, 7, 8, 2)])
    assert [(part.stop - part.start) // ROW for part in store.calls[1]] == [1, 1, 3, 2]


def test_what_was_fetched_is_not_fetched_again_by_this_process_or_the_next(
    store: MemoryStore, arrays: list[np.ndarray]
) -> None:
    read(opened := files(store), epoch(0))
    store.calls.clear()

    for again in (opened, files(store)):
        assert np.array_equal(read(again, epoch(1)), expected(arrays, epoch(1)))

    assert store.calls == []


def test_two_that_share_the_cache_use_what_the_other_fetched(store: MemoryStore, arrays: list[np.ndarray]) -> None:
    one, other = files(store), files(store)
    wanted = epoch(0)
    read(one, wanted[:5]), read(other, wanted[:5])
    store.calls.clear()

    read(one, wanted[5:40])
    assert np.array_equal(read(other, wanted), expected(arrays, wanted))

    assert store.bytes_read == (FILES * COUNT - 5) * ROW


@pytest.mark.parametrize("rows", [0, 1, 25])
def test_a_cache_smaller_than_the_dataset_keeps_its_size_and_changes_no_image(
    store: MemoryStore, arrays: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setenv(LIMIT, str(rows * (ROW + 4096) / 2**30))
    opened = files(store)
    for seed in range(3):
        wanted = epoch(seed)
        for start in range(0, len(wanted), 4):
            part = wanted[start : start + 4]
            assert np.array_equal(read(opened, part), expected(arrays, part))

    on_disk = sum(path.stat().st_blocks * 512 for path in store.cache.iterdir())
    # Headers and marks of the files themselves are not counted beforehand.
    assert on_disk <= rows * (ROW + 4096) + FILES * 3 * 4096
    fetched = store.bytes_read / ROW / (FILES * COUNT)
    assert fetched < 3 - 2 * 0.8 * rows / (FILES * COUNT) + 0.1


def read_three_epochs(store: MemoryStore, arrays: list[np.ndarray], process: int) -> bool:
    """In a process of its own: whether all images were right."""
    opened = files(store)
    orders = [epoch(10 * process + number) for number in range(3)]
    parts = [order[start : start + 5] for order in orders for start in range(0, len(order), 5)]
    return all(np.array_equal(read(opened, part), expected(arrays, part)) for part in parts)


@pytest.mark.parametrize("rows", [30, 100])
def test_processes_that_write_at_the_same_time_read_the_right_images(
    store: MemoryStore, arrays: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setenv(LIMIT, str(rows * (ROW + 4096) / 2**30))
    work = partial(read_three_epochs, store, arrays)
    assert list(in_processes(work, range(3), 3)) == [True] * 3

    # Each may have a batch on its way that the others do not see, and keeps room for a 64th of all.
    on_disk = sum(path.stat().st_blocks * 512 for path in store.cache.iterdir())
    assert on_disk <= (rows + 3 * (5 + 2) + FILES) * (ROW + 4096)
    assert not list(store.cache.glob(".*"))


def test_threads_that_write_at_the_same_time_keep_to_the_size(
    store: MemoryStore, arrays: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, str(25 * (ROW + 4096) / 2**30))
    opened, wanted = files(store), epoch(0)
    parts = [wanted[start : start + 12] for start in range(0, len(wanted), 12)]
    all_read = threading.Barrier(len(parts), timeout=60)
    read(opened, [(0, 0), (1, 0), (2, 0)])
    has_read = store.read

    def read_together(ranges: Sequence[Range]) -> list[bytes]:
        all_read.wait()
        return has_read(ranges)

    monkeypatch.setattr(store, "read", read_together)
    with ThreadPoolExecutor(len(parts)) as pool:
        for part, images in zip(parts, pool.map(partial(read, opened), parts), strict=True):
            assert np.array_equal(images, expected(arrays, part))

    assert sum(path.stat().st_blocks * 512 for path in store.cache.iterdir()) <= (25 + FILES) * (ROW + 4096)


def test_a_full_cache_gives_up_files_that_nobody_uses(
    store: MemoryStore, arrays: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT, str(25 * (ROW + 4096) / 2**30))
    old, used, _ = files(store)
    every = [(0, row) for row in range(COUNT)]
    read([old], every)
    del old
    first = files(store)[0].stored.key
    read([used], every)
    assert not (store.cache / first).exists()
    store.calls.clear()

    read([used], every)
    assert store.calls == []

    # What is in use stays.
    again = files(store)[2]
    read([again], every)
    assert (store.cache / used.stored.key).exists()


@pytest.mark.parametrize("damage", ["row", "mark", "header", "end"])
def test_what_a_power_cut_left_is_not_believed(store: MemoryStore, arrays: list[np.ndarray], damage: str) -> None:
    read(files(store)[:1], [(0, row) for row in range(COUNT)])
    path = store.cache / next(iter(store.keys.values()))
    content = bytearray(path.read_bytes())
    if damage == "row":
        content[128 + 3 * ROW + ROW // 2 : 128 + 4 * ROW] = bytes(ROW // 2)
    elif damage == "mark":
        content[-COUNT * 4 + 3 * 4] ^= 1
    elif damage == "header":
        content[:128] = bytes(128)
    path.write_bytes(content[: -10 if damage == "end" else len(content)])

    wanted = [(0, 3), (0, 4)]
    assert np.array_equal(read(files(store)[:1], wanted), expected(arrays, wanted))


def test_a_process_that_is_killed_between_a_row_and_its_mark_leaves_it_unmarked(
    store: MemoryStore, arrays: list[np.ndarray], tmp_path: Path
) -> None:
    program = """
import os, signal, sys
from pathlib import Path
from memory_store import MemoryStore
import numpy as np
from diptych.data.cache_folder import LIMIT, cache_folder
from diptych.data.stored import Range, StoredFile
from diptych.data.stored_pixels import StoredPixels, Wanted, fill
store = MemoryStore(Path(sys.argv[1]))
store.contents["0" * 32] = Path(sys.argv[2]).read_bytes()
written, write = [], os.pwrite
def pwrite(descriptor, content, offset):
    if len(written) == 5:  # after the third row
        os.kill(os.getpid(), signal.SIGKILL)
    written.append(offset)
    return write(descriptor, content, offset)
os.pwrite = pwrite
pixels = StoredPixels(StoredFile(Path("x.npy"), "0" * 32, store), 64)
fill(np.zeros((5, 64, 64, 3), np.uint8), [Wanted(pixels, np.arange(5), np.arange(5))])
"""
    np.save(tmp_path / "x.npy", arrays[0])
    command = [sys.executable, "-c", program, str(store.cache), str(tmp_path / "x.npy")]
    environment = shell.environment(PYTHONPATH=os.pathsep.join(sys.path))
    assert subprocess.run(command, env=environment).returncode == -signal.SIGKILL

    store.keys = {tmp_path / "x.npy": "0" * 32}
    store.take(tmp_path / "x.npy")
    key = store.keys[tmp_path / "x.npy"]
    (store.cache / ("0" * 32)).rename(store.cache / key)
    wanted = [(0, row) for row in range(5)]
    assert np.array_equal(read(files(store), wanted), expected(arrays, wanted))
    assert store.bytes_read == 3 * ROW


def test_a_cache_that_cannot_be_written_is_said_once_and_changes_nothing(
    store: MemoryStore, arrays: list[np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    store.cache.write_text("a file where the folder would be")
    opened = files(store)
    for seed in range(2):
        assert np.array_equal(read(opened, epoch(seed)), expected(arrays, epoch(seed)))
    assert [record.message for record in caplog.records] == [
        f"{store.cache} cannot keep what is fetched (File exists), so it is fetched each time."
    ]


def test_a_full_disk_is_said_once_and_changes_nothing(
    store: MemoryStore, arrays: list[np.ndarray], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    opened = files(store)
    assert np.array_equal(read(opened, epoch(0)), expected(arrays, epoch(0)))
    assert [record.message for record in caplog.records] == [
        f"{store.cache} cannot keep what is fetched (No space left on device), so it is fetched each time."
    ]


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x93NUMPY\x01\x00"])
def test_what_is_no_array_is_damaged(store: MemoryStore, content: bytes) -> None:
    store.contents = dict.fromkeys(store.contents, content)
    with pytest.raises(DiptychError, match=r"0\.npy is damaged or cut off in the store"):
        read(files(store), [(0, 0)])


def test_an_array_of_another_shape_or_length_is_refused(store: MemoryStore, tmp_path: Path) -> None:
    opened = files(store)
    with pytest.raises(DiptychError, match=r"0\.npy is damaged or cut off in the store"):
        read(opened, [(0, COUNT)])
    first = opened[0].stored
    with pytest.raises(DiptychError, match=rf"0\.npy in the store holds \({COUNT}, {SIZE}, {SIZE}, 3\), not images"):
        fill(np.zeros((1, 8, 8, 3), np.uint8), [Wanted(StoredPixels(first, 8), np.array([0]), np.array([0]))])
