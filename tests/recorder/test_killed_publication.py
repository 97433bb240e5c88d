"""SIGKILL between each two writes of a publication: whoever takes the recording up has every row, and has it once.

A killed process leaves the files as they are at that moment. So the files are copied at each such moment of one
recording, and each copy is taken up by a collector.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fdtrace.recorder import schema
from fdtrace.recorder.collector import live_parts, store
from fdtrace.recorder.collector.live_parts import LIVE
from fdtrace.recorder.collector.process import Collector, recover
from fdtrace.recorder.collector.replaced_files import ReplacedFiles
from fdtrace.recorder.collector.store import PARTED, Store
from fdtrace.recorder.collector.views import Views
from fdtrace.recorder.session import Session
from fdtrace.recorder.trace.trace import open_trace
from tests.recorder.helpers import query
from tests.recorder.written_ring import WrittenRing, published, tables_of

Files = dict[Path, bytes]


class Moments:
    """The files of a recording, as they were between the writes of its collector."""

    def __init__(self, session: Session) -> None:
        self.session, self.trace = session, Path(session.output)
        self.all: list[Files] = []

    def files(self) -> Files:
        paths = [*self.session.parts.iterdir(), *([self.trace] if self.trace.exists() else [])]
        return {path: path.read_bytes() for path in paths}

    def note(self) -> None:
        """Remember the files as they are now."""
        files = self.files()
        if not self.all or files != self.all[-1]:
            self.all.append(files)

    def around(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with a moment before it and one after it; of a part that it writes, also with half of it."""

        def noted(*given: Any) -> Any:
            self.note()
            result = real(*given)
            self.note()
            if isinstance(given[0], Path):
                half = given[0].read_bytes()[: given[0].stat().st_size // 2]
                self.all.append({**self.files(), given[0]: half})
            return result

        return noted

    def restore(self, files: Files) -> None:
        """Make the files as they were."""
        for path in self.files().keys() - files.keys():
            path.unlink()
        for path, content in files.items():
            path.write_bytes(content)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    made = Session.create(tmp_path / "t.duckdb")
    yield made
    made.remove_rings()


def test_each_moment_of_a_publication(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "COMPACT_AT", 2)
    engine, moments = WrittenRing(session), Moments(session)
    collector = Collector(session)
    engine.steps(9)
    published(collector)
    engine.steps(7)  # two parts of each table: this publication merges them
    for owner, name in (
        (store, "write_part"), (live_parts, "write_part"), (Store, "merge"), (Store, "put"), (Views, "copy"),
        (os, "fsync"), (ReplacedFiles, "sweep"),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, moments.around(getattr(owner, name)))
    expected = published(collector)
    collector.leave()
    monkeypatch.undo()
    assert [len(expected[name]) for name in ("step", "step_request", "call")] == [16, 32, 17]
    assert len(expected["request"]) == 7
    assert len(moments.all) > 20
    for files in moments.all:
        moments.restore(files)
        follower = Collector(session)
        assert published(follower) == expected
        follower.leave()
    recover(session)
    assert tables_of(moments.trace) == expected
    assert not session.parts.exists()


def as_before(trace: Path) -> None:
    """Make a published file one of the version before: its rows that are not final are in tables, and in no part."""
    with duckdb.connect(str(trace)) as db:
        ((text,),) = db.execute("SELECT state FROM _collector").fetchall()
        state = json.loads(text)
        live = state.pop("live")
        for name, table in LIVE.items():
            part = trace.with_name(f"{trace.name}.parts") / live[table.name]
            db.execute(f"CREATE TABLE {name} AS FROM '{part}'")
            part.unlink()
            state["parts"][table.name][0].remove(live[table.name])
        db.execute("UPDATE _collector SET state = $1", [json.dumps(state)])
        for view in (*schema.VIEWS, *PARTED):
            db.execute(f"DROP VIEW {view.name}")
        db.execute("DROP MACRO _parts")


def test_a_recording_of_the_version_before_is_read_and_taken_up(session: Session) -> None:
    engine, trace = WrittenRing(session), Path(session.output)
    collector = Collector(session)
    engine.steps(9)
    expected = published(collector)
    collector.leave()
    as_before(trace)
    with open_trace(trace) as opened:
        found = {table.name: opened.rows(f"FROM {table.name} ORDER BY ALL") for table in PARTED}
    assert {name: [tuple(row.values()) for row in rows] for name, rows in found.items()} == expected
    engine.steps(3)
    recover(session)
    after = tables_of(trace)
    assert len(after["step"]) == 12
    assert [row for row in after["step_request"] if row[1] < 9] == expected["step_request"]
    assert query(trace, "SELECT count(*), count(DISTINCT request) FROM request") == [(6, 6)]
