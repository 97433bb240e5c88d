"""Kept traces of a flight recorder that begin with a checkpoint: what they say follows from the whole flight."""

from __future__ import annotations

import json
import subprocess
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder import schema
from fdtrace.recorder.flight.flight_plan import SECOND
from fdtrace.recorder.flight.keep_from_checkpoint import OF_CALLS
from fdtrace.recorder.session import Session
from fdtrace.recorder.trace.trace import open_trace
from tests.fastdeploy.conftest import Stand
from tests.flown import fly
from tests.made_once import made_once
from tests.recorder.helpers import query
from tests.stands import armed_for

RUN = ("--blocks", "60", "--aborts", "--seconds", "600", "--sleep", "0.002")
STANDIN = Path(__file__).parent / "standin" / "deployment.py"

EVENT = "call, ts, kind, request, reason, detail"

Row = tuple[Any, ...]


def fly_standin(directory: Path) -> None:
    directory.mkdir()
    stand = Stand.at(STANDIN, directory)

    def start(session: Session) -> subprocess.Popen[str]:
        armed = armed_for(session, stand.environment)
        return subprocess.Popen(stand.command(*RUN), env=armed, stdout=subprocess.DEVNULL, text=True)

    fly(directory / "fl", start)


@pytest.fixture(scope="module")
def kept(shared: Path) -> list[Path]:
    """The whole flight, and the traces that begin with each of its later segments."""
    flown = made_once(shared / "standin-flown", fly_standin)
    whole, *later = sorted((flown / "fl").glob("*-segment.duckdb"))
    return [whole, *(path for path in later if first_call(path))]  # else no forward had run before it began


def first_call(path: Path) -> int:
    ((call,),) = query(path, "SELECT DISTINCT call FROM event WHERE kind = 'found'")
    return int(call)


def test_a_flight_has_several_segments_and_each_but_the_first_begins_with_a_checkpoint(
    kept: list[Path],
) -> None:
    """Two may begin with the same one: a machine that stands still makes a segment without a checkpoint of its own."""
    calls = [first_call(path) for path in kept]
    assert calls[0] == 0
    assert calls == sorted(calls)
    assert calls[-1] > 0
    for path in kept:
        assert query(path, "SELECT count(*) FROM event WHERE kind = 'checkpoint'") == [(0,)]
        ((notes,),) = query(path, "SELECT notes FROM trace")
        assert "the order of" not in notes
        with open_trace(path) as trace:
            assert trace.recording().details.order is not None


def rows_of(path: Path, table: str, where: str, columns: str = "*") -> list[Row]:
    return sorted(query(path, f"SELECT {columns} FROM {table} WHERE {where}"), key=repr)


def test_what_came_after_the_checkpoint_is_as_in_the_whole_flight(kept: list[Path]) -> None:
    whole = kept[0]
    for path in kept[1:]:
        call, ((step,),) = first_call(path), query(path, "SELECT min(step) FROM step")
        assert rows_of(path, "call", "true") == rows_of(whole, "call", f"call >= {call}")
        assert rows_of(path, "call_request", "true") == rows_of(whole, "call_request", f"call >= {call}")
        assert rows_of(path, "step_request", "true") == rows_of(whole, "step_request", f"step >= {step}")
        own = ", ".join(name for name in schema.STEP.names if name not in OF_CALLS)
        assert rows_of(path, "step", "true", own) == rows_of(whole, "step", f"step >= {step}", own)
        ((begins,),) = query(path, "SELECT min(ts) FROM event WHERE kind = 'found'")
        changes = "call IS NOT NULL AND kind <> 'arrived'"
        changed, all_of_it = ({*rows_of(one, "event", changes, EVENT)} for one in (path, whole))
        assert {row for row in all_of_it if row[0] > call or (row[0] == call and row[1] >= begins)} <= changed
        assert {row[0] for row in changed - all_of_it} == {call}
        assert {row[2] for row in changed - all_of_it} <= {"found", "queued", "abort_wanted"}


class Queues:
    """The queues of an engine, followed through the order of a trace."""

    def __init__(self) -> None:
        self.running: list[str] = []
        self.waiting: deque[str] = deque()
        self.rescheduled: set[str] = set()
        self.aborting: set[str] = set()
        self.wanted: set[str] = set()

    def change(self, kind: str, name: str) -> None:
        if kind == "queued":
            self.waiting.append(name)
        elif kind == "requeued":
            self.rescheduled.discard(name)
            self.waiting.appendleft(name)
        elif kind == "left":
            self.running.remove(name)
        elif kind == "recycled":
            self.aborting.discard(name)
        elif kind == "abort_wanted":
            self.wanted.add(name)

    def call(self, did: str, name: str) -> None:
        if did == "chunk" and name not in self.running:
            self.waiting.remove(name)
            self.running.append(name)
        elif did in ("preempted", "aborted"):
            self.running.remove(name)
            self.wanted.discard(name)
            (self.rescheduled if did == "preempted" else self.aborting).add(name)

    @property
    def state(self) -> dict[str, Any]:
        return {
            "running": self.running, "waiting": [*self.waiting], "preempted": sorted(self.rescheduled),
            "aborting": sorted(self.aborting), "abort_wanted": sorted(self.wanted & {*self.running, *self.waiting}),
        }  # fmt: skip


def followed(whole: Path, call: int, ts: int) -> dict[str, Any]:
    """The queues before a call that began to look at a time (ns), by the order of a trace from its start on."""
    queues = Queues()
    changes = (
        "SELECT e.call, 0, epoch_ns(e.ts), kind, request_id FROM event e JOIN request USING (request) "
        f"WHERE call IS NOT NULL AND (call < {call} OR (call = {call} AND epoch_ns(e.ts) < {ts}))"
    )
    did = (
        f"SELECT call, 1, row_number() OVER (), did, request_id FROM call_request JOIN request USING (request) "
        f"WHERE did IS NOT NULL AND call < {call}"
    )
    for _, is_call, _, kind, name in query(whole, f"{changes} UNION ALL {did} ORDER BY 1, 2, 3"):
        (queues.call if is_call else queues.change)(kind, name)
    return queues.state


def found_in(path: Path) -> dict[str, Any]:
    """The queues as a kept trace says that its first call found them."""
    begins = query(path, "SELECT min(epoch_ns(ts)), max(epoch_ns(ts)) FROM event WHERE kind = 'found'")[0]
    state: dict[str, Any] = {
        name: [] for name in ("running", "waiting", "preempted", "aborting", "abort_wanted")
    }
    rows = query(
        path,
        "SELECT CASE WHEN kind = 'found' THEN detail->>'$.place' ELSE kind END, request_id FROM event "
        "JOIN request USING (request) WHERE kind IN ('found', 'queued', 'abort_wanted') "
        f"AND call = {first_call(path)} AND arrived_step IS NULL AND epoch_ns(ts) < {begins[1] + SECOND // 1000} "
        "ORDER BY ts",
    )
    for place, name in rows:
        state[{"queued": "waiting", "requeued": "waiting"}.get(place, place)].append(name)
    for name in ("preempted", "aborting", "abort_wanted"):
        state[name].sort()
    return state


def test_what_a_checkpoint_says_follows_from_everything_before_it(kept: list[Path]) -> None:
    states = []
    for path in kept[1:]:
        ((ts,),) = query(path, "SELECT min(epoch_ns(ts)) FROM event WHERE kind = 'found'")
        states.append(found_in(path))
        assert states[-1] == followed(kept[0], first_call(path), ts)
    assert any(state["running"] and state["waiting"] for state in states)


def test_a_checkpoint_has_the_tokens_that_its_call_counts(kept: list[Path]) -> None:
    """The stand-in makes no token between the two."""
    for path in kept[1:]:
        found = query(
            path,
            "SELECT request, CAST(detail->>'$.num_total_tokens' AS INT) FROM event "
            "WHERE kind = 'found' AND detail->>'$.place' = 'running' "
            "AND CAST(detail->>'$.num_computed_tokens' AS INT) = CAST(detail->>'$.num_prefill_tokens' AS INT)",
        )
        counted = query(
            path,
            f"SELECT request, num_total_tokens FROM call_request WHERE did IS NULL AND call = {first_call(path)}",
        )
        left = "SELECT request FROM call_request WHERE did IN ('preempted', 'aborted') AND call = "
        lost = query(path, f"{left}{first_call(path)}")
        known = {*counted} | {row for row in found if (row[0],) in lost}
        assert {*found} <= known | {row for row in found if row[1] == prompt_of(path, row[0])}


def prompt_of(path: Path, request: int) -> int:
    ((tokens,),) = query(path, f"SELECT num_prompt_tokens FROM request WHERE request = {request}")
    return int(tokens)


def test_a_plain_recording_asks_for_no_checkpoint(tmp_path: Path) -> None:
    session = Session.create(tmp_path / "t.duckdb")
    try:
        assert "checkpoints" not in session.for_agent()
        assert json.dumps(session.for_agent())
    finally:
        session.discard()
