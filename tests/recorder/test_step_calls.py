"""The calls behind a step of a recorded deployment: which it belongs to, how far behind they were, who waited."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import numpy as np
import pytest

from fdtrace.recorder.step_calls import StepCall, read_lags, read_step_calls, read_step_lags
from fdtrace.recorder.trace.call_lags import CallLags
from fdtrace.recorder.trace.file import add_schema_views
from tests.replayer.test_deployments import tables_of


@pytest.fixture(scope="module")
def tight() -> Iterator[duckdb.DuckDBPyConnection]:
    """A deployment under few KV blocks: it stalls and preempts."""
    with duckdb.connect() as db:
        tables_of(db, "tight")
        add_schema_views(db)
        yield db


@pytest.fixture(scope="module")
def lags(tight: duckdb.DuckDBPyConnection) -> CallLags:
    found = read_lags(tight, 0)
    assert found is not None
    return found


def one(db: duckdb.DuckDBPyConnection, query: str, *parameters: int) -> tuple[int, ...]:
    row = db.execute(query, parameters).fetchone()
    assert row is not None
    return row


def test_a_call_whose_tasks_entered_has_the_lag_of_the_view(
    tight: duckdb.DuckDBPyConnection, lags: CallLags
) -> None:
    rows = tight.execute("SELECT call, seen_step FROM call_lag WHERE first_step IS NOT NULL").fetchall()
    assert len(rows) > 10
    seen = lags.seen_by(np.array([call for call, _ in rows], np.int64))
    assert seen.tolist() == [step for _, step in rows]


def test_what_a_call_knew_holds_until_another_counts_more(lags: CallLags) -> None:
    first, second = lags.call[:2].tolist()
    assert lags.seen_by(np.array([first - 1, first, second - 1, second], np.int64)).tolist() == [
        -1,
        lags.seen_step[0],
        lags.seen_step[0],
        lags.seen_step[1],
    ]


def test_a_deployment_is_behind_its_forwards(tight: duckdb.DuckDBPyConnection, lags: CallLags) -> None:
    behind = read_step_lags(tight, 0, lags)
    (steps,) = one(tight, "SELECT count(*) FROM step")
    assert len(behind) == steps
    known = behind[behind >= 0]
    assert len(known) > 0.9 * steps
    assert (known > 0).mean() > 0.5  # lockstep would be 0 everywhere


def test_a_step_shows_the_last_call_whose_tasks_entered_and_those_after_it(
    tight: duckdb.DuckDBPyConnection, lags: CallLags
) -> None:
    for step, ts in tight.execute("SELECT step, epoch_ns(ts) FROM step ORDER BY step").fetchall()[5:60]:
        found = read_step_calls(tight, 0, step, lags)
        assert found is not None
        assert found.of_step is not None
        (entered,) = one(tight, "SELECT max(call) FROM call WHERE NOT idle AND first_step <= $1", step)
        assert found.of_step.call == entered
        others = [call for call in found.between if call.call > entered]
        assert all(call.idle or (call.first_step or step) >= step for call in others)
        (begun,) = one(tight, "SELECT count(*) FROM call WHERE call > $1 AND epoch_ns(ts) <= $2", entered, ts)
        assert len(others) == min(begun, found.num_between)
        assert all(call.began_us <= 0 for call in found.between)


def stalled_steps(db: duckdb.DuckDBPyConnection) -> list[tuple[int, int]]:
    return db.execute("SELECT step, num_stalled FROM step WHERE num_stalled > 0 ORDER BY step").fetchall()


def test_a_stalled_request_names_the_call_that_it_waited_for(
    tight: duckdb.DuckDBPyConnection, lags: CallLags
) -> None:
    stalls = stalled_steps(tight)
    assert stalls
    for step, count in stalls:
        found = read_step_calls(tight, 0, step, lags)
        assert found is not None
        assert len(found.stalled) == count
        for request in found.stalled:
            assert request.since <= step
            if request.call is None:
                continue
            assert request.first_step is not None
            assert request.first_step > step
            query = (
                "SELECT count(*) FROM call_request JOIN request USING (engine_id, request) "
                "WHERE call = $1 AND request_id = $2 AND did = $3"
            )
            row = tight.execute(query, [request.call, request.request_id, request.did]).fetchone()
            assert row == (1,)


def test_where_no_call_knew_anything_there_are_no_lags(tight: duckdb.DuckDBPyConnection) -> None:
    assert read_lags(tight, 7) is None


def test_a_step_that_is_not_there_has_no_calls(tight: duckdb.DuckDBPyConnection, lags: CallLags) -> None:
    assert read_step_calls(tight, 0, 10_000_000, lags) is None


def test_the_columns_of_a_call_are_those_of_its_table(
    tight: duckdb.DuckDBPyConnection, lags: CallLags
) -> None:
    found = read_step_calls(tight, 0, 40, lags)
    assert found is not None
    call = found.of_step
    assert isinstance(call, StepCall)
    names = [
        name
        for name in StepCall.__dataclass_fields__
        if name not in ("began_us", "took_us", "head", "not_admitted", "seen_step")
    ]
    row = tight.execute(f"SELECT {', '.join(names)} FROM call WHERE call = $1", [call.call]).fetchone()
    assert row == tuple(getattr(call, name) for name in names)
