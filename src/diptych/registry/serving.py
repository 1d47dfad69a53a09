"""The model that is searched with, and its indexes: both change in one step."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project.provenance import folder_sha256
from diptych.project.workspace import Workspace
from diptych.registry.registered_model import CHALLENGER, CHAMPION, RegisteredModel, Version
from diptych.retriever import Retriever
from diptych.serving.collections import open_source
from diptych.serving.store import Store

if TYPE_CHECKING:
    from diptych.serving.following import ModelKey
    from diptych.serving.index import Index
    from diptych.serving.indexing import IndexSummary


def open_store(workspace: Workspace) -> Store:
    """Return the store of indexes: DIPTYCH_SEARCH, or else the project's own."""
    return Store(os.environ.get("DIPTYCH_SEARCH") or str(workspace.search), workspace.local / "cache" / "search")


def refresh_indexes(workspace: Workspace, params: Params, folder: Path) -> dict[str, IndexSummary]:
    """Bring the indexes of all collections up to date with the model in `folder`, and return the outcome of each.

    Raises:
        DiptychError: a collection cannot be indexed; the message names it.
    """
    store = open_store(workspace)
    if not (collections := store.collections()):
        return {}
    # They import torch, which a project without collections does not need here.
    from diptych.model.device import prepare
    from diptych.serving.indexing import update_index

    device = str(prepare(params.device, params.threads))
    retriever, model = Retriever.load(folder, device, params.evaluate.batch_size), folder_sha256(folder)
    outcomes = {}
    for name in collections:
        state = store.collection(name)
        if state is None:  # removed meanwhile
            continue
        try:
            outcomes[name] = update_index(store, name, open_source(state.source), retriever, model, rerank=state.rerank)
        except DiptychError as error:
            raise DiptychError(
                f"The collection {name} cannot be indexed: {error} `diptych index --collection {name} --remove` gives "
                "it up."
            ) from None
    return outcomes


def open_index(workspace: Workspace, collection: str, folder: Path) -> Index:
    """Open the index of a collection that was made with the model in `folder`.

    Raises:
        DiptychError: as `Index.open`.
    """
    from diptych.serving.index import Index

    return Index.open(open_store(workspace), collection, folder_sha256(folder))


def latest_index(workspace: Workspace, params: Params, collection: str) -> Index:
    """Open the index of a collection that was made with the version in use.

    Raises:
        DiptychError: there is no version in use, or as `Index.open`.
    """
    from diptych.serving.index import Index

    version = version_in_use(RegisteredModel.of(workspace, params))
    return Index.open(open_store(workspace), collection, version.tags["model_sha256"])


def version_in_use(model: RegisteredModel) -> Version:
    """Return the champion, or else the challenger.

    Raises:
        DiptychError: there is neither.
    """
    entry = model.entry()
    for alias in (CHAMPION, CHALLENGER):
        if entry is not None and alias in entry.aliases:
            return model.find(entry.aliases[alias])
    raise DiptychError(f"{model.name} has neither a champion nor a challenger yet: `diptych run` makes a version.")


@contextmanager
def located(workspace: Workspace, params: Params, which: str | None) -> Iterator[tuple[Path, str]]:
    """Give the folder of a model and its title.

    Args:
        workspace: the project.
        params: its settings.
        which: number or alias of a version, or the path of a model's folder; the version in use if None.

    Raises:
        DiptychError: there is no such version, or its package cannot be fetched.
    """
    if which is not None and Path(which).is_dir():
        yield Path(which), which
        return
    model = RegisteredModel.of(workspace, params)
    version = model.find(which) if which is not None else version_in_use(model)
    with model.fetched(version) as folder:
        yield folder, version.title


class FollowedModels:
    """The model that a server is to serve, which changes when an alias moves.

    Args:
        workspace: the project.
        params: its settings.
        which: as of `located`.
        device: device to load models on.
    """

    def __init__(self, workspace: Workspace, params: Params, which: str | None, device: str) -> None:
        self._workspace, self._params, self._which, self._device = workspace, params, which, device
        self._folder = Path(which) if which is not None and Path(which).is_dir() else None

    def current(self) -> ModelKey:
        """Return the model that is to be served now, as `Models` says."""
        from diptych.serving.following import ModelKey

        if self._folder is not None:
            return ModelKey(str(self._folder), folder_sha256(self._folder))
        model = RegisteredModel.of(self._workspace, self._params)
        version = model.find(self._which) if self._which is not None else version_in_use(model)
        return ModelKey(version.title, version.tags["model_sha256"])

    def load(self, key: ModelKey) -> Retriever:
        """Load the model, as `Models` says."""
        batch_size = self._params.evaluate.batch_size
        if self._folder is not None:
            return Retriever.load(self._folder, self._device, batch_size)
        name, _, number = key.title.rpartition(" version ")
        model = RegisteredModel.of(self._workspace, self._params, name)
        with model.fetched(model.find(number)) as folder:
            return Retriever.load(folder, self._device, batch_size)
