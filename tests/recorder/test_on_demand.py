"""A recording whose columns are read when they are asked for: the same as one in memory, and as carefully checked."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace import check_keys
from fdtrace.recorder.trace.check_keys import reference_problems, step_problems
from fdtrace.recorder.trace.columns_on_demand import TableColumns, entry_of, stored_column
from fdtrace.recorder.trace.read_step_numbers import distinct, read_step_numbers
from fdtrace.recorder.trace.trace import Trace, open_trace
from fdtrace.trace_reader import TraceReader
from tests.made_once import made_once
from tests.recorder.helpers import record_played


@pytest.fixture(scope="session")
def path(shared: Path) -> Path:
    """A trace of 60 steps."""
    return made_once(shared / "played-60.duckdb", partial(record_played, 60))


@pytest.fixture
def trace(path: Path) -> Iterator[Trace]:
    with open_trace(path) as trace:
        yield trace


@pytest.fixture
def changed(path: Path, tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copy(path, tmp_path / "t.duckdb"))


def test_it_holds_what_a_recording_in_memory_holds(trace: Trace) -> None:
    loaded, lazy = trace.recording().loaded(), trace.recording_on_demand()
    for name, values in loaded.steps.items():
        assert np.array_equal(lazy.steps[name], values), name
        assert lazy.steps[name].dtype == values.dtype, name
        assert np.array_equal(stored_column(lazy.steps, name), values), name
    assert lazy.steps.keys() == loaded.steps.keys()
    assert lazy.requests.keys() == loaded.requests.keys()
    assert all(np.array_equal(lazy.requests[name], values) for name, values in loaded.requests.items())
    assert lazy.loaded().details == loaded.details


def test_one_entry_is_the_same_before_and_after_its_column_is_read(trace: Trace) -> None:
    loaded, lazy = trace.recording(), trace.recording_on_demand()
    for name, values in loaded.steps.items():
        for entry in (0, 7, len(values) - 1):
            assert entry_of(lazy.steps, name, entry) == values[entry], name
    lazy.loaded()
    assert all(entry_of(lazy.steps, name, 7) == values[7] for name, values in loaded.steps.items())


def test_a_column_needs_no_more_memory_than_its_values(trace: Trace) -> None:
    steps = trace.recording_on_demand().steps
    assert stored_column(steps, "num_running").dtype == np.int8
    assert stored_column(steps, "num_tokens").dtype in (np.int8, np.int16)
    assert stored_column(steps, "num_blocks").strides == (0,), "one value for all steps"
    assert stored_column(steps, "cache_read_budget").strides == (0,), "no value"


def test_nothing_is_read_before_it_is_asked_for(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(TableColumns, "_read_column", lambda _, column: read.append(column.name))
    recording = trace.recording_on_demand()
    assert recording.num_steps == 60
    assert "num_tokens" in recording.steps
    assert not read


def test_steps_out_of_order_and_with_gaps_are_sorted(changed: Path) -> None:
    with duckdb.connect(str(changed)) as db:
        db.execute("CREATE TABLE rows AS FROM step WHERE step NOT IN (5, 6) ORDER BY hash(step)")
        db.execute("DELETE FROM step")
        db.execute("CHECKPOINT")
        db.execute("INSERT INTO step FROM rows")
        db.execute("DROP TABLE rows")
        db.execute("DELETE FROM step_request WHERE step IN (5, 6)")
    with open_trace(changed) as trace:
        loaded, lazy = trace.recording(), trace.recording_on_demand()
        assert 5 not in lazy.steps["step"]
        assert all(np.array_equal(lazy.steps[name], values) for name, values in loaded.steps.items())
        fresh = trace.recording_on_demand().steps
        assert [entry_of(fresh, "num_tokens", at) for at in range(58)] == loaded.steps["num_tokens"].tolist()


def test_what_is_not_read_before_the_trace_is_closed_is_an_error(path: Path) -> None:
    with open_trace(path) as trace:
        recording = trace.recording_on_demand()
        tokens = recording.steps["num_tokens"]
    assert np.array_equal(recording.steps["num_tokens"], tokens)
    for table in (recording.steps, recording.requests):
        with pytest.raises(TraceError, match="the trace is closed"):
            table["request" if "request" in table else "num_running"]
    with pytest.raises(TraceError, match="cannot be pickled"):
        pickle.dumps(recording)


BROKEN: dict[str, str] = {
    "requests that are there twice": "INSERT INTO request FROM request LIMIT 1",
    "events of no request": "UPDATE event SET request = 100000 WHERE request = 3",
    "ids of others": "UPDATE request SET request_id = 'x', finished_at = NULL WHERE request IN (2, 3)",
    "rows that are there twice": "INSERT INTO step_request FROM step_request",
}


@pytest.mark.parametrize("statement", BROKEN.values(), ids=BROKEN.keys())
def test_what_is_wrong_with_requests_is_said_before_they_are_used(changed: Path, statement: str) -> None:
    with duckdb.connect(str(changed)) as db:
        db.execute(statement)
    with open_trace(changed) as trace:
        with pytest.raises(TraceError, match="values that no recording has"):
            trace.recording()
        recording = trace.recording_on_demand()
        assert recording.steps["num_tokens"].sum() > 0
        uses: tuple[Any, ...] = (
            lambda: recording.requests["request"],
            lambda: recording.details.endings,
            recording.loaded,
        )
        for use in uses:
            with pytest.raises(TraceError, match="values that no recording has"):
                use()


def test_a_wrong_step_is_said_at_once(changed: Path) -> None:
    with duckdb.connect(str(changed)) as db:
        db.execute("INSERT INTO step FROM step WHERE step = 7")
    with open_trace(changed) as trace, pytest.raises(TraceError, match="a step that is there already"):
        trace.recording_on_demand()


def test_more_rows_than_memory_holds_are_not_rescheduled(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace.check_step_requests(0)
    monkeypatch.setattr(check_keys, "machine_memory", lambda: 2**10)
    with pytest.raises(TraceError, match="too large to be rescheduled here"):
        trace.check_step_requests(0)


def test_rows_that_cannot_be_rescheduled_leave_the_recording_readable(changed: Path) -> None:
    with duckdb.connect(str(changed)) as db:
        db.execute("UPDATE step_request SET kind = 'decode'")
    reader = TraceReader(changed)
    try:
        with pytest.raises(TraceError, match="the prefills of `step_request` ran 0 tokens"):
            reader.check_step_requests()
        assert len(reader.first.steps["num_waiting"]) == 60
        assert reader.rows(7)
    finally:
        reader.close()


def test_a_sound_trace_has_no_problem(trace: Trace) -> None:
    assert step_problems(trace.tables, 0, read_step_numbers(trace.tables, 0)) == []
    assert reference_problems(trace.tables, 0) == []


@pytest.mark.parametrize("numbers", [[], [3], [5, 4, 4], [0, 10**9, 0], [7, 8, 9]])
def test_distinct_numbers_are_counted(numbers: list[int]) -> None:
    assert distinct(np.array(numbers, np.int64)) == len(set(numbers))
