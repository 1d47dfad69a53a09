"""One set of compiled statements for all MLflow stores of a process: each test has its own store, with the same tables.

SQLAlchemy compiles each statement anew for each database, and MLflow reads its migrations for each, which takes longer
than what most tests ask of a store.
"""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def share_engines() -> None:
    """Let the SQLite stores that this process opens from now on share what does not depend on the file."""
    import mlflow.store.db.utils as utils
    import mlflow.store.model_registry.sqlalchemy_store as registry
    import mlflow.store.tracking.sqlalchemy_store as tracking
    from sqlalchemy import event

    create: Any = utils.create_sqlalchemy_engine_with_retry
    engines: list[Any] = []

    def create_engine(uri: str) -> Any:
        engine = create(uri)
        if uri.startswith("sqlite:"):
            engines[:] = engines or [engine]
            # The dialect is part of the key under which a compiled statement is kept.
            engine.dialect, engine._compiled_cache = engines[0].dialect, engines[0]._compiled_cache  # noqa: SLF001
            # A test kills processes at most, which loses nothing that was handed to the system.
            event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = OFF"))
        return engine

    for module in (utils, registry):
        vars(module)["create_sqlalchemy_engine_with_retry"] = create_engine
    utils._get_latest_schema_revision = functools.cache(utils._get_latest_schema_revision)  # noqa: SLF001
    registry.SqlAlchemyStore._engine_map = tracking.SqlAlchemyStore._engine_map  # noqa: SLF001


def prepare_forks() -> None:
    """Do in a process that forks what each of its forks would do before its first question to a store."""
    share_engines()
    import mlflow.store.db.utils as utils
    from sqlalchemy.orm import configure_mappers

    configure_mappers()
    utils._get_latest_schema_revision()  # noqa: SLF001
