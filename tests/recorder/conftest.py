"""No played engine outlives its test, whatever became of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.recorder import helpers


@pytest.fixture(autouse=True)
def no_engine_is_left() -> Iterator[None]:
    """End the engines that the test started."""
    yield
    while helpers.started:
        process = helpers.started.pop()
        if process.poll() is None:
            process.kill()
        process.communicate()
