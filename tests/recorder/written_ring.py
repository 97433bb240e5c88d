"""An engine's ring that a test writes, and what a collector of it publishes."""

from __future__ import annotations

import os
from array import array
from pathlib import Path
from typing import Any

import duckdb

from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import KeyframeRow, Writer
from fdtrace.recorder.collector.process import Collector
from fdtrace.recorder.collector.store import PARTED
from fdtrace.recorder.session import Session

SEGMENT = 1 << 20
MEMORY = wire.AllocatorFigures(1 << 34, 1 << 35, 1 << 34, 1 << 35)

Tables = dict[str, list[tuple[Any, ...]]]


class WrittenRing:
    """The ring of an engine with two rows. Each third step, a request ends and another comes."""

    def __init__(self, session: Session) -> None:
        page = ring.create(f"{session.dir}/1-1.ring", wire.PROTOCOL, 0, 2, SEGMENT)
        self.ids, self.outputs, self.number = ["r0", "r1"], [0, 0], 0
        about = {"name": "written", "max_num_batched_tokens": 64, "pid": os.getpid()}
        self.writer = Writer(page, 2, SEGMENT, lambda: about, lambda: map(self._row, range(2)))

    def _row(self, slot: int) -> tuple[int, KeyframeRow]:
        made = self.outputs[slot]
        return slot, KeyframeRow(self.ids[slot], 8, 99, 8 + made, 1, 0, made)

    def steps(self, count: int) -> None:
        """Write so many steps."""
        for _ in range(count):
            self._step(self.number)
            self.number += 1

    def _step(self, number: int) -> None:
        writer, slot = self.writer, number // 3 % 2
        writer.boundary()
        if number % 3 == 2:
            writer.finish(self.ids[slot], "length", self.outputs[slot])
            self.ids[slot], self.outputs[slot] = f"r{number}", 0
            writer.request(self.ids[slot], number, 8, 99)
            writer.batch((slot,), [(slot, KeyframeRow(self.ids[slot], 8, 99, 8, 1, 0, 0))])
        figures = wire.CallFigures(num_running=2, num_waiting=number)
        writer.schedule(number, number * 1000, 10, "", figures)
        # The next call is written too, but not its forward: its row goes on.
        writer.schedule(number + 1, number * 1000 + 9, 10, "", figures)
        ran = memoryview(array("i", [1, 1]))
        writer.forward(number, number, number * 1000, 9, -1, MEMORY, b"", b"", ran, ran)
        self.outputs = [made + 1 for made in self.outputs]


def tables_of(path: Path) -> Tables:
    """All rows of the tables that grow, in order."""
    with duckdb.connect(str(path), read_only=True) as db:
        return {table.name: db.execute(f"FROM {table.name} ORDER BY ALL").fetchall() for table in PARTED}


def published(collector: Collector) -> Tables:
    """What it publishes of all that is in the ring."""
    collector.discover()
    collector.read()
    collector.publish()
    return tables_of(Path(collector.session.output))
