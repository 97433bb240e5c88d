"""One small recording, copies of it that are other recordings, and a lake in a directory."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import duckdb
import pytest

from fdtrace.recorder.lake.lake_connection import check_extensions
from fdtrace.recorder.lake.lake_errors import LakeError
from fdtrace.recorder.lake.lake_name import LakeName, parse_lake
from tests.made_once import made_once
from tests.recorder.helpers import record_played

OtherTrace = Callable[..., Path]

UNSURE = {"waiting": ("behind", "not_admitted")}
"""Columns of views in which equally frequent values compete: the rows say nothing of which of them it is."""


def sure_columns(view: str, *more: str) -> str:
    """What a query selects of a view: all but those, and `more`."""
    left_out = ", ".join((*UNSURE.get(view, ()), *more))
    return f"COLUMNS(*{f' EXCLUDE ({left_out})' if left_out else ''})::VARCHAR"


@pytest.fixture(scope="session")
def recorded(shared: Path) -> Path:
    """A trace of 300 steps, about a fifth of them over the limit. It is only read."""
    return made_once(shared / "played-300.duckdb", partial(record_played, 300))


@pytest.fixture
def another(recorded: Path, tmp_path: Path) -> OtherTrace:
    """Makes a copy of the recording that is another one: of another host, begun so many days before."""

    def make(name: str, *, host: str = "h", days: int = 0) -> Path:
        path = tmp_path / f"{name}.duckdb"
        shutil.copy(recorded, path)
        with duckdb.connect(str(path)) as db:
            shift = f"to_days({days})"
            db.execute("UPDATE engine SET host = $1", [host])
            db.execute(f"UPDATE trace SET created_at = (created_at::TIMESTAMP - {shift})::TIMESTAMP_NS")
        return path

    return make


@pytest.fixture
def lake(tmp_path: Path) -> LakeName:
    """A lake in a directory, not yet made. The test is skipped where the extra is not installed."""
    name = parse_lake(f"ducklake:{tmp_path / 'lake'}")
    try:
        check_extensions(name)
    except LakeError as error:
        pytest.skip(f"{error.why}: {error.hint}, or make test-fleet")
    return name
