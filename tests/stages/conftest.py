"""What the tests of several stages need."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def no_speed_test() -> Iterator[None]:
    """No training of the module measures how fast the machine is."""
    from interrupting import measure_no_speed

    with pytest.MonkeyPatch.context() as patch:
        measure_no_speed(patch)
        yield
