"""Scheduling calls: each is a row, runs of equal idle ones are one; the forward that a call's tasks entered."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import pytest

from fdtrace.recorder import schema
from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import IDLE_RESOLUTION_NS, KeyframeRow, Writer
from fdtrace.recorder.collector.many_processes import ManyProcessEngine
from fdtrace.recorder.collector.one_process import OneProcessEngine
from fdtrace.recorder.collector.part import Part
from fdtrace.recorder.collector.reader import RingReader

SIZE = 1 << 18
MILLISECOND = 1_000_000
WAITS = wire.CallFigures(token_budget=64, num_running=0, num_waiting=2, num_missing_blocks=3, head=0)


class Process:
    """The writer of one process, and the reader of its ring."""

    def __init__(self, directory: Path, name: str, segments: int = 4) -> None:
        self.path = directory / f"{name}.ring"
        page = ring.create(str(self.path), wire.PROTOCOL, 0, segments, SIZE)
        request = KeyframeRow("r0", 8, 9, 8, 1, 0, 0)
        self.writer = Writer(page, segments, SIZE, lambda: {"name": name}, lambda: [(0, request)])
        self.writer.boundary()
        self.reader = RingReader(str(self.path))

    def call(self, number: int, ts: int, figures: wire.CallFigures = WAITS, flags: int = wire.EMPTY) -> None:
        self.writer.schedule(number, ts, 1, "blocks", figures, flags)

    def forward(self, step: int, call: int, ts: int, flags: int = 0) -> None:
        tokens = memoryview(array("h", [1]))
        self.writer.forward(step, call, ts, 1, -1, wire.AllocatorFigures(), b"", b"", tokens, tokens, flags)

    def frames(self) -> int:
        """SCHEDULE frames in the ring."""
        found, reader = 0, RingReader(str(self.path))
        while (chunk := reader.read()) is not None:
            found += sum(chunk.data[at] == wire.SCHEDULE for at in chunk.payloads)
        return found


def rows_of(decoded: list[Any], *names: str) -> list[tuple[int, ...]]:
    """These columns of the rows that were decoded."""
    return [
        row for columns in decoded for row in zip(*(columns[name].tolist() for name in names), strict=True)
    ]


def decode(process: Process, decoder: OneProcessEngine, *, final: bool = True) -> list[Any]:
    while (chunk := process.reader.read()) is not None:
        decoder.feed(Part(""), chunk)
    return decoder.take(0 if final else 1).calls


def test_equal_idle_calls_are_one_row_with_their_number_and_times(tmp_path: Path) -> None:
    engine = Process(tmp_path, "engine")
    for number in range(1000):
        engine.call(number, number * MILLISECOND)
    engine.call(1000, 1000 * MILLISECOND, WAITS._replace(num_waiting=3))
    engine.call(1001, 1001 * MILLISECOND)
    found = decode(engine, OneProcessEngine(0))
    assert rows_of(found, "call", "num_calls", "ts", "last_ts", "num_waiting") == [
        (0, 1000, 0, 999 * MILLISECOND, 2),
        (1000, 1, 1000 * MILLISECOND, 1000 * MILLISECOND, 3),
        (1001, 1, 1001 * MILLISECOND, 1001 * MILLISECOND, 2),
    ]
    assert engine.frames() < 10


def test_what_a_killed_engine_leaves_of_a_run_is_exact_as_of_its_last_frame(tmp_path: Path) -> None:
    engine = Process(tmp_path, "engine")
    every = IDLE_RESOLUTION_NS // 4
    for number in range(11):  # the ring is read as it is then: nothing ends the run
        engine.call(number, number * every)
    assert rows_of(decode(engine, OneProcessEngine(0)), "num_calls", "last_ts") == [(9, 8 * every)]


def test_a_forward_and_a_call_that_hands_something_out_end_a_run(tmp_path: Path) -> None:
    engine = Process(tmp_path, "engine")
    did = WAITS._replace(num_chunks=1)
    engine.call(0, 1, did, flags=0)
    engine.forward(0, 0, 2)
    engine.call(1, 3)
    engine.call(2, 4)
    engine.forward(1, 2, 5)
    engine.call(3, 6)
    engine.call(4, 7, did, flags=0)
    engine.call(5, 8)
    found = decode(engine, OneProcessEngine(0))
    assert rows_of(found, "call", "num_calls", "idle", "first_step") == [
        (0, 1, 0, 0), (1, 2, 1, -1), (3, 1, 1, -1), (4, 1, 0, -1), (5, 1, 1, -1),
    ]  # fmt: skip


def test_whatever_happens_between_two_idle_calls_ends_their_run(tmp_path: Path) -> None:
    """Its place among the calls would be lost otherwise."""
    engine = Process(tmp_path, "engine")
    for number in range(3):
        engine.call(number, number)
    engine.writer.request("r9", 3, 5, 6)
    for number in range(3, 5):
        engine.call(number, number + 1)
    engine.writer.close()
    assert rows_of(decode(engine, OneProcessEngine(0)), "call", "num_calls") == [(0, 3), (3, 2)]


def test_an_idle_run_that_goes_on_is_told_while_it_records_and_once_in_the_end(tmp_path: Path) -> None:
    engine, decoder = Process(tmp_path, "engine"), OneProcessEngine(0)
    for number in range(2):
        engine.call(number, number * IDLE_RESOLUTION_NS)
    assert decode(engine, decoder, final=False) == []
    assert rows_of([decoder.call_rows.live()], "call", "num_calls") == [(0, 2)]
    decoder = OneProcessEngine.from_state(json.loads(json.dumps(decoder.state())))
    for number in range(2, 5):
        engine.call(number, number * IDLE_RESOLUTION_NS)
    assert rows_of(decode(engine, decoder), "call", "num_calls") == [(0, 5)]
    assert decoder.call_rows.num_calls == 5
    assert rows_of([decoder.call_rows.live()], "call") == []


class Deployment:
    """A process that schedules, and one that runs the forwards."""

    def __init__(self, directory: Path, segments: int = 4) -> None:
        self.engine, self.worker = Process(directory, "engine"), Process(directory, "worker", segments)
        self.parts = {id(self.engine): Part("engine"), id(self.worker): Part("worker")}
        self.joined = ManyProcessEngine(0)

    def read(self, *, final: bool = True) -> list[Any]:
        for process in (self.engine, self.worker):
            while (chunk := process.reader.read()) is not None:
                self.joined.feed(self.parts[id(process)], chunk)
        return self.joined.take(0 if final else 1).calls

    def hand_out(self, call: int) -> None:
        self.engine.call(call, 10 * call, WAITS._replace(num_chunks=1), flags=0)

    def land(self, *calls: int) -> None:
        for call in calls:
            self.worker.writer.tasks(call, 7)

    def run(self, step: int, call: int) -> None:
        self.worker.forward(step, call, 1000 + step, wire.LANDED)


def test_the_tasks_of_several_calls_may_enter_one_forward(tmp_path: Path) -> None:
    both = Deployment(tmp_path)
    for call in (0, 1):
        both.hand_out(call)
    both.engine.call(2, 25)
    for call in (3, 4):
        both.hand_out(call)
    both.land(0)
    both.run(0, 0)
    both.run(1, 0)
    both.land(1, 3)
    both.run(2, 3)
    found = both.read()
    assert rows_of(found, "call", "idle", "first_step") == [
        (0, 0, 0), (1, 0, 2), (2, 1, -1), (3, 0, 2), (4, 0, -1),
    ]  # fmt: skip


@pytest.mark.parametrize("told", [True, False], ids=["tasks came after the loss", "tasks were lost too"])
def test_a_call_whose_first_forward_may_be_lost_has_none(tmp_path: Path, told: bool) -> None:
    both = Deployment(tmp_path, segments=2)
    both.hand_out(0)
    both.land(0)
    both.run(0, 0)
    before = both.read(final=False)
    both.hand_out(1)
    if not told:
        both.land(1)
    step = 1
    while both.worker.writer.ring.lap < 8:
        both.worker.writer.boundary()
        both.run(step, 0 if told else 1)
        step += 1
    if told:
        both.land(1)
    both.run(step, 1)
    found = rows_of(before + both.read(), "call", "first_step")
    assert found == [(0, 0), (1, step if told else -1)]


@pytest.mark.parametrize("decoder", [OneProcessEngine, ManyProcessEngine])
def test_every_figure_of_a_call_reaches_the_column_of_its_name(
    tmp_path: Path, decoder: type[OneProcessEngine | ManyProcessEngine]
) -> None:
    engine = Process(tmp_path, "engine")
    figures = wire.CallFigures(*range(101, 101 + len(wire.CallFigures._fields)))._replace(head=0)
    engine.writer.schedule(7, 301, 302, "slots", figures, wire.RATIO)
    if decoder is ManyProcessEngine:
        joined = ManyProcessEngine(5)
        chunk = engine.reader.read()
        assert chunk is not None
        joined.feed(Part("engine"), chunk)
        (columns,) = joined.take(0).calls
    else:
        (columns,) = decode(engine, OneProcessEngine(5))
    row = {name: values[0] for name, values in columns.items() if name in schema.CALL.names}
    named = {name: value for name, value in figures._asdict().items() if name in schema.CALL.names}
    assert row == {
        **named, "engine_id": 5, "call": 7, "num_calls": 1, "idle": 0, "ts": 301, "last_ts": 301, "schedule_us": 302,
        "reserved_output_blocks": -1, "new_token_ratio": figures.reservation / 1e6, "first_step": -1,
    }  # fmt: skip
    assert set(schema.CALL.names) - set(row) == {"not_admitted"}
    assert columns["reason"][0] == wire.NOT_ADMITTED.index("slots")
