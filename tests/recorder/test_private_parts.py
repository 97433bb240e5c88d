"""A trace is its user's alone; of a recording in progress, no file is read but its own parts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import duckdb
import pytest

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.trace import open_trace
from fdtrace.recorder.trace_paths import parts_directory
from tests.recorder.helpers import (
    armed_environment,
    collected,
    finish,
    has_steps,
    pump,
    start_engine,
    stop_engine,
)


def steps_in(path: Path) -> int:
    """Steps that a trace holds; 0 while it is not there."""
    try:
        with open_trace(path) as trace:
            return int(trace.rows("SELECT count(*) AS n FROM step")[0]["n"])
    except TraceError:
        return 0


@pytest.fixture(scope="module")
def cut_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording in progress as it was at a moment: the file and its parts, below a name with brackets."""
    path = tmp_path_factory.mktemp("live") / "a[x]*" / "t[1].duckdb"
    kept = path.parent / "kept"
    path.parent.mkdir()
    with collected(path) as (session, supervisor):
        engine = start_engine("--steps", 0, "--sleep", 0.001, env=armed_environment(session))
        changed = has_steps(path)
        pump(supervisor, lambda: changed() and steps_in(path) > 50)
        for file in (path, *parts_directory(path).iterdir()):
            if file.suffix in (".duckdb", ".parquet"):
                assert file.stat().st_mode & 0o077 == 0, f"{file} is for others to read"
        shutil.copytree(path.parent, kept, ignore=shutil.ignore_patterns("kept"))
        stop_engine(engine)
        finish(supervisor)
    assert path.stat().st_mode & 0o777 == 0o600
    return kept / path.name


@pytest.fixture
def live(cut_off: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(cut_off.parent, tmp_path / "copy [x]")
    return tmp_path / "copy [x]" / cut_off.name


def test_it_is_read_where_its_parts_lie(live: Path) -> None:
    with open_trace(live) as trace:
        assert trace.live
        assert trace.recording().num_steps > 50
        assert trace.rows("SELECT count(*) AS n FROM exceeded")
        assert len(trace.recording().requests["request"]) > 0


def a_part(path: Path) -> Path:
    return min(parts_directory(path).glob("step-*.parquet"))


def test_without_its_parts_it_says_so(live: Path) -> None:
    a_part(live).unlink()
    with pytest.raises(TraceError, match="whose parts are not beside it"), open_trace(live):
        pass


@pytest.mark.parametrize("kind", ["link", "pipe", "device", "directory"])
def test_a_part_that_is_no_file_is_not_read(live: Path, kind: str) -> None:
    part = a_part(live)
    other = part.rename(live.with_name("elsewhere.parquet"))
    if kind == "link":
        part.symlink_to(other)
    elif kind == "pipe":
        os.mkfifo(part)
    elif kind == "device":
        part.symlink_to("/dev/zero")
    else:
        part.mkdir()
    with pytest.raises(TraceError, match="is no regular file"), open_trace(live):
        pass


def test_a_damaged_part_is_told_as_that(live: Path) -> None:
    part = a_part(live)
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(TraceError, match="is damaged"), open_trace(live):
        pass


def test_a_part_of_other_columns_is_refused(live: Path) -> None:
    for part in parts_directory(live).glob("step-*.parquet"):
        with duckdb.connect() as db:
            db.execute(
                f"CREATE TABLE t AS SELECT * REPLACE (num_tokens::VARCHAR AS num_tokens) FROM read_parquet('{part}')"
            )
            part.unlink()
            db.execute(f"COPY t TO '{part}' (FORMAT parquet)")
    with pytest.raises(TraceError, match="column `num_tokens` of table `step` is VARCHAR"), open_trace(live):
        pass


def test_views_of_the_file_are_not_asked(live: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("mine alone")
    with duckdb.connect(str(live)) as db:
        db.execute("DROP VIEW exceeded")
        db.execute(f"CREATE VIEW exceeded AS SELECT content AS limit_name FROM read_text('{secret}')")
    with open_trace(live) as trace:
        assert "excess_tokens" in trace.db.sql("FROM exceeded").columns
