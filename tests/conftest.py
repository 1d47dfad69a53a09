"""Small datasets for tests of any module."""

from __future__ import annotations

import gc
import importlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

# Before torch is imported: what the tests compute is too small for two threads, and no core is idle.
os.environ["OMP_NUM_THREADS"] = "1"
# ranx compiles for 40 seconds what then computes for one.
os.environ["NUMBA_DISABLE_JIT"] = "1"

import numpy as np
import pytest
import shell
from forked import Forks
from forking import wait_for_no_disk
from PIL import Image
from sharing import made_once

from diptych.data.captions import Dataset, write_dataset
from diptych.data.shards import ShardWriter

# Until everything is imported: a million objects would be looked through again and again, and none of them ends.
gc.disable()

pytest_plugins = ["fake_project", "pipeline_clone"]

Together = tuple[Path, Callable[[str], tuple[Any, ...]]]

IMPORTED_FIRST = """
great_expectations.datasource.fluent.pandas_datasource great_expectations.expectations.core matplotlib.pyplot
mlflow.pyfunc mlflow.store.tracking.sqlalchemy_store prefect.client.orchestration scipy.stats
sklearn.feature_extraction.text timm torch._dynamo
"""


# After pytest's own, which knows its folder then, and before anything else is imported.
@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Put temporary files into pytest's own folder, so that killed processes leave nothing elsewhere.

    No test reaches a server that whoever starts them uses.
    """
    for name in [name for name in os.environ if name.startswith(("FIRST", "KILLED_AT", "MLFLOW_", "PREFECT_", "RAY_"))]:
        del os.environ[name]
    os.environ["TMPDIR"] = str(config._tmp_path_factory.mktemp("tmp"))  # type: ignore[attr-defined]  # noqa: SLF001
    tempfile.tempdir = None
    wait_for_no_disk()
    if "PYTEST_XDIST_WORKER" in os.environ and config.getoption("cov_source", None):
        # Before coverage is measured, which makes these imports, which every process needs, half as slow again.
        for module in IMPORTED_FIRST.split():
            importlib.import_module(module)


# Before the selection by markers.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs `heavy` as slow. Among several processes, files with slow tests go first.

    Begun last, one would keep the others waiting.
    """
    for item in items:
        if isinstance(item, pytest.Function) and "heavy" in item.fixturenames:
            item.add_marker(pytest.mark.slow)
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Have the garbage collector look at what tests make, and not at what was imported."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def heavy() -> None:
    """What needs this starts a server, or a process that imports torch: `make test-fast` leaves it out."""


def make_photo(seed: int, size: tuple[int, int] = (64, 48), file_format: str = "PNG", **options: Any) -> bytes:
    """The file of a smooth picture, another one for each `seed`."""
    colours = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file = BytesIO()
    Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC).save(file, file_format, **options)
    return file.getvalue()


@pytest.fixture(scope="session")
def photo() -> Callable[..., bytes]:
    """`make_photo`."""
    return make_photo


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are empty: drawing them takes most of the time."""
    monkeypatch.setattr("diptych.report.figures._svg", lambda *arguments: "data:image/svg+xml;base64,")


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Makes a dataset in tmp_path/data of (split, file content) pairs; images have ids from 1 and two captions each.

    A content of None leaves the image out of the shards; `captions` gives other captions to an id; `change` may
    edit the Dataset before it is written.
    """

    def make(
        images: Sequence[tuple[str | None, bytes | None]],
        captions: dict[int, list[Any]] | None = None,
        change: Callable[[Dataset], object] | None = None,
    ) -> Path:
        dataset = Dataset()
        with ShardWriter(tmp_path / "data") as shards:
            for image_id, (split, content) in enumerate(images, start=1):
                name = f"{image_id:012d}.png"
                if content is not None:
                    shards.add(name, content)
                dataset.images.append(
                    {"id": image_id, "file_name": name, "split": split, "source": f"photos/{image_id}.png"}
                )
                for text in (captions or {}).get(image_id, [f"a picture of thing {image_id}", "something colourful"]):
                    dataset.annotations.append(
                        {"id": len(dataset.annotations) + 1, "image_id": image_id, "caption": text}
                    )
        if change is not None:
            change(dataset)
        write_dataset(tmp_path / "data", dataset)
        return tmp_path / "data"

    return make


@pytest.fixture(scope="session")
def two_processes(heavy: None, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Together:
    """The folder in which two processes went through gloo.py, and what each of them said in a part, by its name."""
    return _together(2, forks, tmp_path_factory)


@pytest.fixture(scope="session")
def four_processes(heavy: None, forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> Together:
    """As `two_processes`, for four that only trained."""
    return _together(4, forks, tmp_path_factory)


def _together(processes: int, forks: Forks, factory: pytest.TempPathFactory) -> Together:
    program = f"import sys; from pathlib import Path; import gloo; gloo.run_together(Path(sys.argv[1]), {processes})"

    def make(folder: Path) -> None:
        subprocess.run(forks.python("-c", program, str(folder)), env=shell.environment(), check=True)

    import torch

    folder = made_once(factory, f"together-{processes}", make)

    def said(part: str) -> tuple[Any, ...]:
        return tuple(torch.load(folder / f"{part}-{index}.pt", weights_only=True) for index in range(processes))

    return folder, said
