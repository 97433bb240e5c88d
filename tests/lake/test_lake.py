"""A lake in a directory: what is pushed comes out again; once, whole or not at all; and old traces go."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fdtrace.cli import main
from fdtrace.recorder import schema
from fdtrace.recorder.errors import TraceError, UsageError
from fdtrace.recorder.lake import push_trace as pushing
from fdtrace.recorder.lake.lake_errors import LakeError
from fdtrace.recorder.lake.lake_lock import lake_lock
from fdtrace.recorder.lake.lake_name import LakeName, LakeTraceName
from fdtrace.recorder.lake.lake_views import open_lake_for_queries
from fdtrace.recorder.lake.pull_trace import list_traces, pull_trace
from fdtrace.recorder.lake.push_trace import PushLabels, PushResult, push_trace
from fdtrace.recorder.trace.query import refuse_statements
from fdtrace.recorder.trace.trace import open_trace
from tests.lake.conftest import OtherTrace, sure_columns
from tests.recorder.helpers import ENGINE, armed_environment, fdtrace_here, start_engine

CHAT = PushLabels("chat", {"commit": "41677b9"})


def contents(path: Path) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table, in the file's order, and of every view."""
    with open_trace(path) as trace:
        db = trace.db
        tables = {table.name: f"SELECT COLUMNS(*)::VARCHAR FROM {table.name}" for table in schema.TABLES}
        views = {
            view.name: f"SELECT {sure_columns(view.name)} FROM {view.name} ORDER BY ALL"
            for view in schema.VIEWS
        }
        return {name: db.sql(query).fetchall() for name, query in (tables | views).items()}


def asked(lake: LakeName, query: str) -> list[tuple[Any, ...]]:
    with open_lake_for_queries(lake) as trace:
        return trace.query(query).fetchall()


def rows_of(lake: LakeName) -> dict[str, set[int]]:
    """For each table, the numbers of rows that traces have in it."""
    with open_lake_for_queries(lake) as trace:
        return {
            table.name: {
                row[1]
                for row in trace.query(f"SELECT trace_id, count(*) FROM {table.name} GROUP BY ALL").fetchall()
            }
            for table in schema.TABLES
        }


def test_a_pulled_trace_is_the_one_that_was_pushed(recorded: Path, lake: LakeName, tmp_path: Path) -> None:
    pushed = push_trace(recorded, lake, CHAT)
    assert not pushed.already
    pull_trace(LakeTraceName(lake, pushed.trace_id[:-4]), tmp_path / "t.duckdb")
    assert contents(tmp_path / "t.duckdb") == contents(recorded)
    (row,) = list_traces(lake)
    with open_trace(recorded) as trace:
        db = trace.db
        exceeded, steps = db.sql(
            "SELECT (SELECT count(*) FROM exceeded), (SELECT count(*) FROM step)"
        ).fetchall()[0]
    assert (row["deployment"], row["labels"], row["num_engines"]) == ("chat", {"commit": "41677b9"}, 1)
    assert (row["num_steps"], row["num_exceeded"]) == (steps, exceeded)


def test_rows_of_a_large_table_keep_their_order(another: OtherTrace, lake: LakeName, tmp_path: Path) -> None:
    """DuckDB writes partitions in pieces of half a million rows, and in any order."""
    path, pulled = another("large"), tmp_path / "pulled.duckdb"
    rows = "SELECT 0, 1000 + i // 32, i, 'decode', 1, 1, 1, 1, 3 FROM range(1200000) t(i)"
    with duckdb.connect(str(path)) as db:
        db.execute(f"INSERT INTO step_request {rows}")
    pull_trace(LakeTraceName(lake, push_trace(path, lake, CHAT).trace_id), pulled)
    with open_trace(pulled) as trace:
        db = trace.db
        places = "SELECT request, row_number() OVER () - 1 AS place FROM step_request WHERE step >= 1000"
        found = db.sql(f"SELECT count(*), bool_and(request = place) FROM ({places})").fetchall()
    assert found == [(1_200_000, True)]


def test_a_second_push_changes_nothing(recorded: Path, lake: LakeName, tmp_path: Path) -> None:
    first = push_trace(recorded, lake, CHAT)
    before = list_traces(lake)
    copy = tmp_path / "copy.duckdb"
    pull_trace(LakeTraceName(lake, first.trace_id), copy)  # the same trace, in another file
    for path in (recorded, copy):
        again = push_trace(path, lake, PushLabels("other", {}))
        assert again == PushResult(first.trace_id, True, first.num_rows)
    assert list_traces(lake) == before


def test_a_trace_that_comes_between_look_and_commit_is_seen(
    recorded: Path, lake: LakeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second push has written its files when the first one commits."""
    others: list[PushResult] = []

    def after_another(*arguments: Any) -> Any:
        monkeypatch.undo()
        others.append(push_trace(recorded, lake, CHAT))
        return lake_lock(*arguments)

    pushing._make_lake(lake)
    monkeypatch.setattr(pushing, "lake_lock", after_another)
    monkeypatch.setattr(pushing, "TRIES", 1)  # SQLite would refuse the commit, and the next try would see it
    assert push_trace(recorded, lake, CHAT).already
    assert [other.already for other in others] == [False]
    assert len(list_traces(lake)) == 1


def test_a_push_that_fails_in_any_table_leaves_nothing(
    recorded: Path, lake: LakeName, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushing._make_lake(lake)
    figures = pushing._figures
    monkeypatch.setattr(
        pushing, "_figures", lambda sources: figures(sources) | {"host": "SELECT error('gone')"}
    )
    with pytest.raises(LakeError, match="was not written") as failed:
        push_trace(recorded, lake, CHAT)
    assert "gone" in failed.value.why
    assert "push it again" in failed.value.hint
    monkeypatch.undo()
    assert set().union(*rows_of(lake).values()) == set()
    assert not push_trace(recorded, lake, CHAT).already


PUSH_ALL = """
import sys
from pathlib import Path
from fdtrace.recorder.lake.lake_name import parse_lake
from fdtrace.recorder.lake.push_trace import LakeWriter, PushLabels
with LakeWriter(parse_lake(sys.argv[1])) as writer:
    for path in sys.argv[2:]:
        writer.push(Path(path), PushLabels("chat", {}))
        print(path, flush=True)
"""


@pytest.mark.slow
def test_killed_pushes_leave_each_trace_whole_or_not_at_all(another: OtherTrace, lake: LakeName) -> None:
    traces = [another(f"t{i}", host=f"host{i}") for i in range(8)]
    expected = {}
    with open_trace(traces[0]) as trace:
        db = trace.db
        for table in schema.TABLES:
            expected[table.name] = db.sql(f"SELECT count(*) FROM {table.name}").fetchall()[0][0]
    for i in range(3):
        command = [sys.executable, "-c", PUSH_ALL, str(lake), *map(str, traces)]
        pushing_process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert pushing_process.stdout is not None
        pushing_process.stdout.readline()  # the first is there
        time.sleep(0.15 * i)
        pushing_process.send_signal(signal.SIGKILL)
        pushing_process.communicate()
        for name, numbers in rows_of(lake).items():
            assert numbers <= {expected[name]}, name
    assert len(list_traces(lake)) > 0
    for path in traces:
        push_trace(path, lake, CHAT)
    hosts = asked(lake, "SELECT host, count(*) FROM trace GROUP BY host ORDER BY ALL")
    assert hosts == sorted((f"host{i}", 1) for i in range(8))
    assert asked(lake, "SELECT DISTINCT n FROM (SELECT count(*) AS n FROM step GROUP BY trace_id)") == [
        (expected["step"],)
    ]


def test_what_is_no_finished_trace_is_refused(
    recorded: Path, lake: LakeName, tmp_path: Path, another: OtherTrace
) -> None:
    nothing = tmp_path / "x.duckdb"
    nothing.write_text("no trace")
    with pytest.raises(TraceError, match="is no trace"):
        push_trace(nothing, lake, CHAT)
    growing = another("growing")
    with duckdb.connect(str(growing)) as db:
        db.execute("CREATE TABLE _collector (state VARCHAR)")
    with pytest.raises(TraceError, match="still records"):
        push_trace(growing, lake, CHAT)
    spoofed = another("spoofed")
    with duckdb.connect(str(spoofed)) as db:
        db.execute("ALTER TABLE step RENAME TO step0; CREATE VIEW step AS FROM step0")
    with pytest.raises(TraceError, match="is a view"):
        push_trace(spoofed, lake, CHAT)


HOSTILE = "h'; DROP TABLE step; --\x1b]0;OWNED\x07\u202e../../etc"


def test_foreign_names_are_data(
    another: OtherTrace, lake: LakeName, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = another("hostile", host=HOSTILE)
    label = f"note={HOSTILE}"
    assert main(["push", str(path), str(lake), "--deployment", "a.b-c_1", "--label", label]) == 0
    (row,) = list_traces(lake)
    assert (row["host"], row["labels"]) == (HOSTILE, {"note": HOSTILE})
    for command in (["list", str(lake)], ["sql", str(lake), "SELECT host, labels FROM trace"]):
        assert main(command) == 0
        said = capsys.readouterr()
        assert "DROP TABLE" in said.out
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", said.out + said.err)
    files = list((tmp_path / "lake" / "data").rglob("*.parquet"))
    assert files
    assert all("deployment=a.b-c_1" in str(file) for file in files)


def test_a_query_reads_the_lake_alone(recorded: Path, lake: LakeName, tmp_path: Path) -> None:
    push_trace(recorded, lake, CHAT)
    secret = tmp_path / "secret.csv"
    secret.write_text("a\nsecret")
    for query in (
        f"FROM '{secret}'",
        f"FROM read_text('{secret}')",
        "FROM 'http://127.0.0.1/x.csv'",
    ):
        with pytest.raises((UsageError, duckdb.Error)):
            asked(lake, query)
    with open_lake_for_queries(lake) as trace:
        for statement in (
            "DELETE FROM lake.main.step",
            "SET enable_external_access = true",
            "SET memory_limit = '1GB'",
            "ATTACH 'x.duckdb'",
        ):
            with pytest.raises(UsageError):
                refuse_statements(trace.db, statement)
            with pytest.raises(duckdb.Error):
                trace.db.execute(statement)
    assert asked(lake, "SELECT count(*) > 0 FROM step") == [(True,)]


def test_a_replay_of_a_trace_in_a_lake_is_that_of_its_file(
    recorded: Path, lake: LakeName, capsys: pytest.CaptureFixture[str]
) -> None:
    trace_id = push_trace(recorded, lake, CHAT).trace_id
    options = ["-f", "exact", "--json"]
    assert main(["replay", str(recorded), *options]) == 0
    expected = json.loads(capsys.readouterr().out)
    assert main(["replay", f"{lake}/{trace_id}", *options]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out) == expected
    assert f"fetched {trace_id}" in said.err
    assert main(["sql", f"{lake}/{trace_id}", "SELECT count(*) FROM exceeded", "--format", "csv"]) == 0
    assert main(["info", f"{lake}/20260101T000000-0"]) == 2
    assert "holds no trace" in capsys.readouterr().err


def test_attach_pushes_what_it_has_recorded(
    lake: LakeName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mailboxes = tmp_path / "mailboxes"
    mailboxes.mkdir(0o700)
    monkeypatch.setenv("FDTRACE_DIR", str(mailboxes))
    engine = start_engine("--sleep", 0.002, env=armed_environment())
    try:
        trace, options = tmp_path / "t.duckdb", ("--steps", 20, "--deployment", "chat", "--label", "a=b")
        done = fdtrace_here("attach", engine.pid, "-o", trace, *options, "--push", lake)
        assert done.returncode == 0, done.stderr
        (row,) = list_traces(lake)
        assert (row["deployment"], row["labels"], row["num_steps"]) == ("chat", {"a": "b"}, 20)
        (tmp_path / "file").write_text("no directory")
        kept = tmp_path / "kept.duckdb"
        done = fdtrace_here(
            "attach", engine.pid, "-o", kept, *options, "--push", f"ducklake:{tmp_path}/file/lake"
        )
        assert done.returncode == 3
        assert f"fdtrace push {kept}" in done.stderr
        assert len(contents(kept)["step"]) == 20
    finally:
        engine.kill()
        engine.wait()


def test_the_question_of_a_fleet(
    another: OtherTrace, lake: LakeName, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(4):
        push_trace(another(f"t{i}", days=i), lake, PushLabels(f"d{i % 2}", {}))
    query = (
        "SELECT deployment, count(DISTINCT trace_id) AS traces, min(ts)::VARCHAR AS first, max(excess_tokens) AS most "
        "FROM exceeded GROUP BY deployment ORDER BY deployment"
    )
    assert main(["sql", str(lake), query, "--format", "json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["deployment"], row["traces"]) for row in rows] == [("d0", 2), ("d1", 2)]
    assert all(row["most"] > 0 for row in rows)


def test_a_lake_of_an_older_schema_is_read_and_grows(
    recorded: Path, lake: LakeName, monkeypatch: pytest.MonkeyPatch, another: OtherTrace
) -> None:
    older = tuple(table for table in schema.TABLES if table.name != "rank_memory")
    request = next(table for table in older if table.name == "request")
    fewer = schema.REQUEST.__class__(request.name, request.comment, request.columns[:-1], request.order_by)
    monkeypatch.setattr(schema, "TABLES", tuple(fewer if table is request else table for table in older))
    first = push_trace(recorded, lake, CHAT)
    monkeypatch.undo()
    assert asked(lake, "SELECT count(priority), count(*) > 0 FROM request") == [(0, True)]
    assert asked(lake, "SELECT count(*) FROM rank_memory") == [(0,)]
    assert push_trace(recorded, lake, CHAT).trace_id == first.trace_id
    assert not push_trace(another("later"), lake, CHAT).already
    assert len(list_traces(lake)) == 2


@pytest.mark.parametrize("code", [0, 7])
def test_record_pushes_what_it_has_recorded_whatever_the_commands_exit_code_is(
    lake: LakeName, tmp_path: Path, code: int
) -> None:
    trace, command = tmp_path / "t.duckdb", f"'{sys.executable}' '{ENGINE}' --steps 20; exit {code}"
    done = fdtrace_here(
        "record", "-o", trace, "--push", lake, "--deployment", "chat", "--", "sh", "-c", command
    )
    assert done.returncode == code, done.stderr
    assert [row["num_steps"] for row in list_traces(lake)] == [20]
    other, no_lake = tmp_path / "other.duckdb", f"ducklake:{trace}/lake"
    done = fdtrace_here("record", "-o", other, "--push", no_lake, "--", "sh", "-c", command)
    assert done.returncode == (code or 3)
    assert "was not pushed" in done.stderr
    assert f"fdtrace push {other}" in done.stderr
    assert len(contents(other)["step"]) == 20
