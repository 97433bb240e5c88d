"""One small recording of a played engine, shared by the tests of the commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.recorder.helpers import armed_environment, collected, finish, start_engine


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of 300 steps, about a fifth of them over the limit."""
    path = tmp_path_factory.mktemp("trace") / "t.duckdb"
    with collected(path) as (session, supervisor):
        start_engine("--steps", 300, env=armed_environment(session)).communicate(timeout=900)
        finish(supervisor)
    return path
