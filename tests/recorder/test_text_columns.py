"""Text in few rows of many: of 2,000 rows and more, DuckDB 1.5 looks at some, and fails if all of them are NULL."""

from __future__ import annotations

from array import array
from pathlib import Path

from fdtrace.recorder import schema
from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import Writer
from fdtrace.recorder.collector.process import Collector
from fdtrace.recorder.collector.tables import columns_of
from fdtrace.recorder.session import Session
from fdtrace.recorder.write_trace import write_trace
from tests.recorder.helpers import query

SIZE = 1 << 20
NUM = 2500


def test_an_event_with_a_reason_after_many_without(tmp_path: Path) -> None:
    session = Session.create(tmp_path / "t.duckdb")
    page = ring.create(f"{session.dir}/1-1.ring", wire.PROTOCOL, 0, 4, SIZE)
    writer = Writer(page, 4, SIZE, lambda: {"name": "scripted"}, list)
    tokens = memoryview(array("i", [2] * 4))
    writer.boundary()
    for _ in range(NUM):
        writer.event("preempted", "r0")
    writer.event("skipped", "r1", "blocks")
    writer.forward(0, 0, 0, 9, -1, wire.AllocatorFigures(1, 2, 3, 4), b"", b"", tokens, tokens)
    writer.close()
    Collector(session).finish("detach")
    counted = "SELECT count(*), count(reason), max(reason) FROM event"
    assert query(Path(session.output), counted) == [(NUM + 1, 1, "blocks")]


def test_a_request_with_a_reason_after_many_without(tmp_path: Path) -> None:
    names = [column.name for column in schema.REQUEST.columns]
    rows = [
        tuple({"engine_id": 0, "request": number, "request_id": f"r{number}"}.get(name) for name in names)
        for number in range(NUM)
    ]
    at = names.index("finish_reason")
    rows[-1] = (*rows[-1][:at], "length", *rows[-1][at + 1 :])
    path = tmp_path / "t.duckdb"
    write_trace(path, {"request": columns_of(schema.REQUEST, rows)})
    counted = "SELECT count(*), count(finish_reason), max(finish_reason) FROM request"
    assert query(path, counted) == [(NUM, 1, "length")]
