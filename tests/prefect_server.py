"""A Prefect server for tests of flows that run in this process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.events.worker import EventsWorker
from prefect.testing.utilities import prefect_test_harness


@contextmanager
def prefect_server() -> Iterator[None]:
    """Prefect's own for tests, which takes ten seconds to start.

    What speaks to an earlier server of this process ends first: it would be taken for what speaks to this one, and try
    each event at the old address, so that the end of the tests waits for nine minutes.
    """
    EventsWorker.drain_all(timeout=5)
    with prefect_test_harness(server_startup_timeout=120):
        yield
