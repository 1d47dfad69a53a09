"""Judged queries: what users have searched for, on which a challenger may not lose to the champion.

params.yaml pins the judgements. The collection is searched as it is now, by both versions.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.config import JudgedQueries, Params
from diptych.errors import DiptychError
from diptych.project.workspace import Workspace
from diptych.registry.errors import UnreachableError
from diptych.registry.guard_sets import pinned_folder
from diptych.registry.registered_model import RegisteredModel, Version
from diptych.registry.serving import indexed_searcher, version_index
from diptych.serving.judged_queries import JudgedQuery, count_answerable, rank_judged, read_judged_queries

FEWEST = 20
"""Smallest number of judged queries with a right image. The bootstrap interval of one query has no width, and that of a
few is too narrow: one or two queries that the challenger misses would refuse it."""


def open_judged_queries(workspace: Workspace, params: Params, champion: Version | None) -> list[JudgedQuery]:
    """Return the judged queries that params.yaml names; none where it names no folder.

    Without a champion nothing is searched, and so the collection need not be there.

    Raises:
        DiptychError: the folder is missing, is not the pinned one or is damaged, the champion has no index of the
            collection, or fewer than `FEWEST` queries have a right image there.
    """
    settings = params.gate.judged_queries
    if settings is None:
        return []
    try:
        queries = read_judged_queries(pinned_folder(workspace, settings.path, settings.md5))
        if champion is None:
            return queries
        count = count_answerable(version_index(workspace, settings.collection, champion), queries)
    except DiptychError as error:
        raise DiptychError(f"params.yaml: gate.judged_queries: {error}") from None
    require_enough(count, settings)
    return queries


def require_enough(count: int, settings: JudgedQueries) -> None:
    """Refuse to compare versions on `count` queries with a right image in the collection.

    Raises:
        DiptychError: they are fewer than `FEWEST`.
    """
    if count < FEWEST:
        raise DiptychError(
            f"params.yaml: gate.judged_queries: {count} queries have a right image that is in the collection "
            f"{settings.collection}; at least {FEWEST} are needed. Export more judgements, or set the key to null."
        )


def check_judged_queries(workspace: Workspace, params: Params) -> None:
    """Check before a training that the gate can use the judged queries.

    Where MLflow does not answer, the champion is unknown, and its collection is left to the gate.

    Raises:
        DiptychError: as `open_judged_queries`.
    """
    if params.gate.judged_queries is None:
        return
    champion = None
    # A training needs no MLflow.
    with suppress(UnreachableError):
        model = RegisteredModel.of(workspace, params)
        champion = model.champion() if model.exists() else None
    open_judged_queries(workspace, params, champion)


def judged_ranks(
    queries: list[JudgedQuery], settings: JudgedQueries, model: Path, workspace: Workspace, params: Params
) -> NDArray[np.float64]:
    """Return the ranks (Q,) of the first right images by the model in the folder `model`.

    The index of the collection is brought up to date first, so a version that becomes champion has it already. NaN is
    the rank of a query without a right image in the collection.

    Raises:
        DiptychError: the collection cannot be indexed or searched.
    """
    searcher = indexed_searcher(workspace, params, settings.collection, model)
    return rank_judged(searcher, queries).rank
