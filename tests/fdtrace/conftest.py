"""One small recording of a played engine, shared by the tests of the commands."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest

from tests.made_once import made_once
from tests.recorder.helpers import record_played


@pytest.fixture(scope="session")
def trace(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of 300 steps, about a fifth of them over the limit."""
    path = tmp_path_factory.mktemp("trace") / "t.duckdb"
    shutil.copy(made_once(shared / "played-300.duckdb", partial(record_played, 300)), path)
    return path
