"""The model that is searched with, and its indexes: both change in one step."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from diptych.config import Params
from diptych.errors import DiptychError
from diptych.project.provenance import folder_sha256
from diptych.project.workspace import Workspace
from diptych.registry.errors import mlflow_errors_explained
from diptych.registry.registered_model import CHALLENGER, CHAMPION, RegisteredModel, Version
from diptych.retriever import Retriever
from diptych.serving.collections import open_source
from diptych.serving.store import CollectionBusyError, CollectionState, Store

if TYPE_CHECKING:
    from diptych.serving.following import ModelKey
    from diptych.serving.index import Index
    from diptych.serving.indexing import IndexSummary
    from diptych.serving.queries import ServedQueries
    from diptych.serving.searcher import Searcher

log = logging.getLogger(__name__)


def open_store(workspace: Workspace) -> Store:
    """Return the store of indexes: DIPTYCH_SEARCH, or else the project's own."""
    address = os.environ.get("DIPTYCH_SEARCH") or str(workspace.search)
    return Store(address, workspace.local / "cache" / "search", workspace.data)


class IndexSwitch:
    """The indexes of all collections, as a version needs them before it becomes champion.

    `prepare` makes them, and leaves those of other models as they are; `announce` says that the collections are now as
    they were indexed. So where anything fails before, what is served goes on.
    """

    def __init__(self, workspace: Workspace, params: Params) -> None:
        self._workspace, self._params = workspace, params
        self._store = open_store(workspace)
        self.outcomes: dict[str, IndexSummary] = {}

    @property
    def is_needed(self) -> bool:
        """Whether there are collections."""
        return bool(self._store.collections())

    def prepare(self, folder: Path) -> None:
        """Bring the indexes of all collections up to date with the model in `folder`.

        Raises:
            DiptychError: a collection cannot be indexed; the message names it.
        """
        load, model = cache(partial(load_retriever, folder, self._params)), folder_sha256(folder)
        for name in self._store.collections():
            state = self._store.collection(name)
            if state is not None:  # else it was removed meanwhile
                self.outcomes[name] = _update(self._store, name, state, model, load)

    def announce(self) -> None:
        """Make the indexed states the present ones."""
        from diptych.serving.indexing import announce

        for name, outcome in self.outcomes.items():
            announce(self._store, name, outcome)


def _update(store: Store, name: str, state: CollectionState, model: str, load: Callable[[], Retriever]) -> IndexSummary:
    # It imports torch, which a project without collections does not need here.
    from diptych.serving.indexing import update_index

    try:
        return update_index(store, name, open_source(state.source, store.data), model, load)
    except CollectionBusyError:
        raise
    except DiptychError as error:
        raise DiptychError(
            f"The collection {name} cannot be indexed: {error} `diptych index --collection {name} --remove` gives "
            "it up."
        ) from None


def load_retriever(folder: Path, params: Params) -> Retriever:
    """Load the model in `folder` with the device, threads and batch size of params.yaml.

    Raises:
        DiptychError: as `Retriever.load`.
    """
    from diptych.model.device import prepare

    return Retriever.load(folder, str(prepare(params.device, params.threads)), params.evaluate.batch_size)


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
    return version_index(workspace, collection, version_in_use(RegisteredModel.of(workspace, params)))


def version_index(workspace: Workspace, collection: str, version: Version) -> Index:
    """Open the index of a collection that was made with a version.

    Raises:
        DiptychError: as `Index.open`.
    """
    from diptych.serving.index import Index

    return Index.open(open_store(workspace), collection, model_sha256(version))


def indexed_searcher(workspace: Workspace, params: Params, collection: str, folder: Path) -> Searcher:
    """Bring the index of a collection up to date with the model in `folder`, and open it; announce nothing.

    Raises:
        DiptychError: there is no such collection, or it cannot be indexed.
    """
    from diptych.serving.searcher import Searcher

    retriever, store = load_retriever(folder, params), open_store(workspace)
    if (state := store.collection(collection)) is not None:
        _update(store, collection, state, folder_sha256(folder), lambda: retriever)
    return Searcher(retriever, open_index(workspace, collection, folder))


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


def is_in_use(workspace: Workspace, params: Params, which: str | None) -> bool:
    """Return whether `which`, as `located` takes it, is the version in use; a folder counts as that."""
    if which is None or Path(which).is_dir():
        return True
    model = RegisteredModel.of(workspace, params)
    return model.find(which).version == version_in_use(model).version


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
        which: number or alias of a version, or a model's folder; the version in use if None.
        keeps_queries: whether the profile of the queries is kept in the project.
    """

    def __init__(self, workspace: Workspace, params: Params, which: str | None, *, keeps_queries: bool = False) -> None:
        self._workspace, self._params, self._which = workspace, params, which
        self._queries = workspace.queries if keeps_queries else None
        self._folder = Path(which) if which is not None and Path(which).is_dir() else None

    def current(self) -> ModelKey:
        """Return the model that is to be served now, as `Models` says."""
        from diptych.serving.following import ModelKey

        if self._folder is not None:
            return ModelKey(str(self._folder), self._folder_sha256, "")
        model = RegisteredModel.of(self._workspace, self._params)
        version = model.find(self._which) if self._which is not None else version_in_use(model)
        return ModelKey(version.title, model_sha256(version), version.version)

    def load(self, key: ModelKey) -> Retriever:
        """Load the model, as `Models` says."""
        if self._folder is not None:
            return load_retriever(self._folder, self._params)
        model = RegisteredModel.of(self._workspace, self._params)
        with model.fetched(model.find(key.number)) as folder:
            return load_retriever(folder, self._params)

    def queries(self, key: ModelKey) -> ServedQueries | None:
        """Return the profile of the model's queries, as `Models` says; a folder has no training captions."""
        from diptych.registry.data_profile import load_profile
        from diptych.serving.queries import ServedQueries

        if self._folder is not None:
            return None
        try:
            model = RegisteredModel.of(self._workspace, self._params)
            with mlflow_errors_explained(model.uri):
                reference = load_profile(model.client, model.find(key.number).run_id)
        except DiptychError as error:
            log.warning("The drift of queries to %s cannot be measured: %s", key.title, error)
            return None
        if reference is None or not reference.images:
            return None
        return ServedQueries(key.sha256, reference, self._params.retrain.drift, self._queries)

    @cached_property
    def _folder_sha256(self) -> str:
        assert self._folder is not None
        return folder_sha256(self._folder)


def model_sha256(version: Version) -> str:
    """Return the SHA-256 of a version's files.

    Raises:
        DiptychError: it was registered without.
    """
    if "model_sha256" not in version.tags:
        raise DiptychError(f"{version.title} has no tag model_sha256: register it again by `diptych run`.")
    return version.tags["model_sha256"]
