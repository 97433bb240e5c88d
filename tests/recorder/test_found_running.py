"""Requests that were there when a recording began: which of them ran, also where the first step left them out."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from fdtrace.recorder import schema
from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import KeyframeRow, Writer
from fdtrace.recorder.collector.engine_ring import EngineRing
from fdtrace.recorder.collector.many_processes import ManyProcessEngine
from fdtrace.recorder.collector.one_process import OneProcessEngine
from fdtrace.recorder.collector.prompt_hash_salt import salted
from fdtrace.recorder.collector.reader import RingReader
from fdtrace.recorder.collector.tables import create
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.initial_state import InitialRequest
from fdtrace.recorder.trace.read_tables import Reader

SIZE = 1 << 18
RUNNING = [
    (0, KeyframeRow("decodes", 8, 9, 10, 1, 0, 2)),
    (1, KeyframeRow("prefills", 80, 9, 53, 4, 0, 0)),
    (2, KeyframeRow("stalled", 8, 9, 12, 1, 0, 4)),
]


def events(path: Path, engine: Any) -> list[tuple[Any, ...]]:
    """The events of two forwards that run the first row, of three that a keyframe names."""
    page = ring.create(str(path), wire.PROTOCOL, 0, 2, SIZE)
    writer = Writer(page, 2, SIZE, lambda: {"name": "engine"}, lambda: RUNNING)
    writer.boundary()
    tokens, emitted = (memoryview(array("h", values)) for values in ((1, 0, 0), (1, 0, 0)))
    for step in range(2):
        writer.schedule(step, step, 1, "", wire.CallFigures(num_running=3))
        writer.forward(step, step, step, 1, -1, wire.AllocatorFigures(), b"", b"", tokens, emitted)
    reader, part = RingReader(str(path)), EngineRing("engine")
    while (chunk := reader.read()) is not None:
        engine.feed(part, chunk)
    return list(engine.take(0).events)


@pytest.mark.parametrize("engine", [OneProcessEngine, ManyProcessEngine])
def test_a_request_that_the_first_step_left_out_is_an_event_with_its_state(
    tmp_path: Path, engine: type[Any]
) -> None:
    found = [event for event in events(tmp_path / "1-1.ring", engine(0)) if event[3] == "found"]
    assert [(event[1], event[4], json.loads(event[6])) for event in found] == [
        (
            0,
            number,
            {
                "place": "running",
                "num_computed_tokens": computed,
                "num_total_tokens": total,
                "num_blocks": blocks,
            },
        )
        for number, computed, total, blocks in ((1, 53, 80, 4), (2, 12, 12, 1))
    ]


def test_if_the_agent_says_what_it_found_the_first_step_adds_nothing(tmp_path: Path) -> None:
    page = ring.create(str(tmp_path / "1-1.ring"), wire.PROTOCOL, 0, 2, SIZE)
    writer = Writer(page, 2, SIZE, lambda: {"name": "engine"}, lambda: RUNNING)
    writer.first_step = 0
    writer.boundary()
    writer.event("found", "stalled", detail={"place": "running"})
    writer.event("found", detail={"place": "engine"})
    head = wire.HashesHead(wire.HASHES, 0, 0, wire.NO_REQUEST, num_hashes=2, block_size=16)
    writer.put(wire.HASHES_HEAD.struct.pack(*head) + b"first...second..")
    tokens = memoryview(array("h", (1, 0, 0)))
    writer.schedule(0, 0, 1, "", wire.CallFigures(num_running=3))
    writer.forward(0, 0, 0, 1, -1, wire.AllocatorFigures(), b"", b"", tokens, tokens)
    engine = OneProcessEngine(0, salt=b"one")
    reader, part = RingReader(str(tmp_path / "1-1.ring")), EngineRing("engine")
    while (chunk := reader.read()) is not None:
        engine.feed(part, chunk)
    found = [event for event in engine.take(0).events if event[3] == "found"]
    assert [(event[1], event[4]) for event in found] == [(0, 2), (0, None), (0, None)]
    (first, second) = json.loads(found[2][6])["cached_blocks"]
    assert salted(b"first...second..", b"one") == [first, second]
    assert OneProcessEngine.from_state(engine.state()).agent_says_what_it_found


@pytest.fixture
def reader() -> Iterator[Reader]:
    """Reads an engine's tables. They are empty."""
    with duckdb.connect() as db:
        for table in schema.TABLES:
            create(db, table.name, table)
        db.execute("INSERT INTO step (engine_id, step) SELECT 0, range FROM range(9)")
        yield Reader(db, 0)


def add(reader: Reader, request: int, prompt: int, *rows: tuple[int, str, int, int]) -> None:
    """A request that arrived before the recording, and its rows: step, kind, tokens, computed tokens."""
    insert = "INSERT INTO request (engine_id, request, request_id, num_prompt_tokens) VALUES (0, ?, ?, ?)"
    reader.db.execute(insert, [request, f"r{request}", prompt])
    for row in rows:
        reader.db.execute(
            "INSERT INTO step_request (engine_id, request, num_blocks, step, kind, num_tokens, num_computed_tokens) "
            "VALUES (0, ?, 4, ?, ?, ?, ?)",
            [request, *row],
        )


def note_found(reader: Reader, request: int | None, detail: str) -> None:
    reader.db.execute(
        "INSERT INTO event (engine_id, step, kind, request, detail) VALUES (0, 0, 'found', ?, ?)",
        [request, detail],
    )


def figures(computed: int, total: int) -> str:
    return json.dumps(
        {"place": "running", "num_computed_tokens": computed, "num_total_tokens": total, "num_blocks": 7}
    )


def test_a_prefill_that_the_first_step_left_out_ran_by_then(reader: Reader) -> None:
    add(reader, 0, 8, (0, "decode", 1, 10))
    add(reader, 1, 80, (2, "prefill", 27, 53))
    add(reader, 2, 80, (3, "prefill", 64, 16))
    note_found(reader, 1, figures(53, 80))
    ran = {first.request: first for first in reader.initial(reader.found())}
    assert ran[1] == InitialRequest(1, 53, 7, False, 80, first_step=2, num_output_tokens=0)
    assert [first.request for first in reader.queued(reader.found())] == [2]


def test_a_request_that_was_preempted_before_it_ran_begins_as_it_was_found(reader: Reader) -> None:
    add(reader, 0, 8, (4, "prefill", 12, 0), (5, "decode", 1, 13))
    add(reader, 1, 8)
    note_found(reader, 0, figures(12, 12))
    note_found(reader, 1, figures(4, 8))
    assert reader.initial(reader.found()) == (
        InitialRequest(0, 12, 7, True, 12, first_step=4, num_output_tokens=4),
        InitialRequest(1, 4, 7, False, 8, first_step=MISSING, num_output_tokens=0),
    )
    assert reader.queued(reader.found()) == ()


def test_of_those_that_waited_the_first_begins_first(reader: Reader) -> None:
    add(reader, 0, 8, (1, "prefill", 8, 0))
    add(reader, 1, 70, (0, "prefill", 64, 0))
    assert [first.request for first in reader.queued(reader.found())] == [1, 0]


@pytest.mark.parametrize("detail", ["{}", '{"num_computed_tokens": "x"}', '{"num_computed_tokens": -9}'])
def test_an_event_without_these_figures_is_no_state(reader: Reader, detail: str) -> None:
    add(reader, 0, 8, (4, "prefill", 8, 0))
    note_found(reader, 0, detail)
    assert reader.initial(reader.found()) == ()


def test_what_the_agent_found_is_the_whole_state(reader: Reader) -> None:
    add(reader, 0, 8, (0, "decode", 1, 10))
    add(reader, 1, 80, (2, "prefill", 27, 53))
    add(reader, 2, 8)
    add(reader, 3, 80, (1, "prefill", 64, 0))
    running = {"place": "running", "num_computed_tokens": 10, "num_total_tokens": 10, "num_blocks": 1}
    waiting = {"place": "waiting", "num_computed_tokens": 0, "num_blocks": 0}
    note_found(reader, 0, json.dumps(running | {"num_in_flight_tokens": 1}))
    offloaded = {"num_total_tokens": 85, "num_offloaded_tokens": 84, "num_offloaded_blocks": 6}
    note_found(reader, 1, json.dumps(waiting | offloaded))
    note_found(reader, 2, json.dumps(waiting | {"num_total_tokens": 12, "num_prefill_tokens": 12}))
    note_found(reader, 3, json.dumps(waiting | {"num_total_tokens": 80}))
    engine = {"place": "engine", "num_requests": 4, "admits_new": False, "num_cached_blocks": 3}
    note_found(reader, None, json.dumps(engine))
    note_found(reader, None, '{"cached_blocks": [18446744073709551615, 7, "x"]}')
    found = reader.found()
    assert (found.is_complete, found.admits_new, found.num_cached_blocks) == (True, False, 3)
    assert found.cached_blocks == (18446744073709551615, 7)
    (decodes,) = reader.initial(found)
    assert (decodes.request, decodes.decoding, decodes.num_in_flight_tokens) == (0, True, 1)
    on_cpu, reset, new = reader.queued(found)
    assert (on_cpu.request, on_cpu.num_offloaded_tokens, on_cpu.num_offloaded_blocks) == (1, 84, 6)
    assert (reset.num_output_tokens, reset.num_prefill_tokens) == (4, 12)
    assert (new.request, new.num_output_tokens, new.num_prefill_tokens) == (3, 0, MISSING)


def test_what_the_agent_found_counts_only_if_all_of_it_is_there(reader: Reader) -> None:
    add(reader, 0, 8, (0, "decode", 1, 10))
    add(reader, 1, 80, (1, "prefill", 64, 0))
    note_found(reader, None, '{"place": "engine", "num_requests": 2, "admits_new": false}')
    found = reader.found()
    assert not found.is_complete
    assert found.admits_new
    assert [first.request for first in reader.initial(found)] == [0]
    assert [first.request for first in reader.queued(found)] == [1]
