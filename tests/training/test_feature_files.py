"""The folder of stored features: whole arrays or none, within its limit, whatever happens to the files."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diptych.errors import DiptychError
from diptych.training.feature_files import FeatureFiles, file_size

SHAPE = (4, 3, 2)
FEATURES = np.arange(24, dtype=np.float16).reshape(SHAPE)


@pytest.fixture
def files(tmp_path: Path) -> FeatureFiles:
    return FeatureFiles(tmp_path / "features", limit=10**6)


def test_an_array_is_found_by_its_key(files: FeatureFiles) -> None:
    assert files.find("a", SHAPE) is None
    files.write("a", FEATURES)
    found = files.find("a", SHAPE)
    assert found is not None
    assert np.array_equal(found, FEATURES)
    assert files.path("a").stat().st_size == pytest.approx(file_size(SHAPE), abs=128)


def flip(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: flip(content, 4 * len(content)), id="a bit in the middle"),
        pytest.param(lambda content: content[:-1], id="the last byte"),
        pytest.param(lambda content: content[: len(content) // 2], id="half"),
        pytest.param(lambda content: content[:20], id="all but a few bytes"),
        pytest.param(lambda content: b"", id="everything"),
        pytest.param(lambda content: b"garbage" * 100, id="garbage"),
        pytest.param(lambda content: b"PK\x03\x04" + content, id="the look of a zip file"),
        pytest.param(lambda content: content.replace(b"(4,", b"(2,"), id="the shape"),
        pytest.param(lambda content: content.replace(b"(4,", b"(4("), id="the syntax of the header"),
    ],
)
def test_a_damaged_file_is_reported_and_holds_nothing(
    files: FeatureFiles, caplog: pytest.LogCaptureFixture, damage: Callable[[bytes], bytes]
) -> None:
    files.write("a", FEATURES)
    files.path("a").write_bytes(damage(files.path("a").read_bytes()))
    assert files.find("a", SHAPE) is None
    assert caplog.messages == [f"{files.path('a')} is damaged and is computed anew."]


@pytest.mark.parametrize("other", [FEATURES[:2], FEATURES.astype(np.float32)], ids=["shape", "dtype"])
def test_a_whole_file_of_another_array_is_damaged(
    files: FeatureFiles, caplog: pytest.LogCaptureFixture, other: np.ndarray
) -> None:
    files.write("a", other)
    assert files.find("a", SHAPE) is None
    assert "is damaged" in caplog.text


WRITER = """
import sys, time
from pathlib import Path
from diptych.files import atomic_path
with atomic_path(Path(sys.argv[1]) / "abc.npy", shared=True) as path:
    path.write_bytes(b"half")
    print("half", flush=True)
    time.sleep(600)
"""


def test_a_killed_writer_leaves_no_entry_and_its_leftover_is_swept_but_a_living_one_s_is_not(
    files: FeatureFiles,
) -> None:
    command = [sys.executable, "-c", WRITER, str(files.folder)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        assert [writer.stdout.readline() for writer in writers if writer.stdout] == [b"half\n"] * 2
        dead, living = writers
        dead.send_signal(signal.SIGKILL)
        dead.wait()
        assert list(files.folder.glob("*.npy")) == []
        files.sweep()
        assert [path.name for path in files.folder.glob(".*")] == [f".abc.npy.{living.pid}.tmp"]
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


def test_the_least_recently_used_makes_room_and_never_what_this_run_uses(files: FeatureFiles) -> None:
    for key, age in (("used", 300), ("old", 200), ("recent", 100)):
        files.write(key, FEATURES)
        os.utime(files.path(key), (time.time() - age,) * 2)
    size = files.path("used").stat().st_size
    files.used = {files.path("used"): size}
    files.limit = 2 * size
    files.make_room()
    assert sorted(path.stem for path in files.folder.iterdir()) == ["recent", "used"]
    files.release([files.path("used")])
    files.touch([files.path("used")])
    files.limit = size
    files.make_room()
    assert [path.stem for path in files.folder.iterdir()] == ["used"]


def test_files_fit_within_the_limit_and_the_disk(files: FeatureFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.used = {files.path("used"): 600_000}
    assert files.fit({files.path("used"): 600_000, files.path("new"): 400_000})
    assert not files.fit({files.path("new"): 400_001})
    files.write("there", FEATURES)
    monkeypatch.setattr(files, "free", lambda: 1000)
    assert files.fit({files.path("there"): 5000})
    assert not files.fit({files.path("new"): 5000})


def test_a_full_disk_is_an_error_that_says_what_to_do(files: FeatureFiles) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(DiptychError, match=r"cannot be written: File too large\. Where the disk is full, free"):
            files.write("a", FEATURES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(files.folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiptychError, match=r"cannot be written: Not a directory"):
        FeatureFiles(tmp_path / "file" / "features", limit=10**6).write("a", FEATURES)
