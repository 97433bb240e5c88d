"""The schema's views over many traces give for each trace what they give for it alone."""

from __future__ import annotations

import duckdb
import pytest

from fdtrace.recorder import schema
from fdtrace.recorder.lake.lake_views import of_many_traces
from fdtrace.recorder.schema_views import View
from fdtrace.recorder.trace.trace import open_trace
from tests.lake.conftest import OtherTrace, sure_columns

SEEN_BY_OTHERS = {"preemption", "call_lag"}
"""Views of which this recording has no rows."""


def test_every_view_keeps_traces_apart(another: OtherTrace) -> None:
    traces = {"20260101T000000-a": another("a"), "20260102T000000-b": another("b")}
    with duckdb.connect(str(traces["20260102T000000-b"])) as db:  # the same steps and requests, other figures
        db.execute(
            "UPDATE engine SET max_num_batched_tokens = max_num_batched_tokens - 20, max_profiled_tokens = NULL"
        )
        db.execute("UPDATE step_request SET num_blocks = num_blocks + 1")
        db.execute("UPDATE request SET request_id = 'b-' || request_id")
        db.execute("DELETE FROM step WHERE step % 7 = 0")
    many = duckdb.connect()
    for number, (trace_id, path) in enumerate(traces.items()):
        many.execute(f"ATTACH '{path}' AS alone (READ_ONLY)")
        for table in schema.TABLES:
            key = f"'{trace_id}' AS trace_id, 'd' AS deployment, DATE '2026-01-01' AS day"
            how = f"CREATE TABLE {table.name} AS" if number == 0 else f"INSERT INTO {table.name}"
            many.execute(f"{how} SELECT {key}, * FROM alone.main.{table.name}")
        many.execute("DETACH alone")
    for view in schema.VIEWS:
        many.execute(f"CREATE VIEW {view.name} AS {of_many_traces(view.query)}")
    for view in schema.VIEWS:
        for trace_id, path in traces.items():
            with open_trace(path) as alone:
                query = f"SELECT {sure_columns(view.name)} FROM {view.name} ORDER BY ALL"
                expected = alone.db.sql(query).fetchall()
            found = many.execute(
                f"SELECT {sure_columns(view.name, 'trace_id', 'deployment', 'day')} FROM {view.name} "
                "WHERE trace_id = $1 ORDER BY ALL",
                [trace_id],
            ).fetchall()
            assert found == expected, view.name
            assert found or view.name in SEEN_BY_OTHERS, view.name


@pytest.mark.parametrize("view", schema.VIEWS, ids=lambda view: view.name)
def test_a_view_says_of_which_trace_a_row_is(view: View) -> None:
    db = duckdb.connect()
    for table in schema.TABLES:
        columns = ", ".join(f"{column.name} {column.type}" for column in table.columns)
        db.execute(f"CREATE TABLE {table.name} (trace_id VARCHAR, deployment VARCHAR, day DATE, {columns})")
    names = db.sql(of_many_traces(view.query)).columns
    assert names[:4] == ["trace_id", "deployment", "day", "engine_id"]
