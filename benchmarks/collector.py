"""What the collector costs: CPU seconds a million `step_request` rows, and bytes a row in the final file.

    python benchmarks/collector.py [--steps N] [--requests N]

Twice: published every 2000 steps, which shows what a row costs, and every 100, about a second of an engine, which adds
what a publication costs.

A writer fills a ring as an engine's agent does (every running request decodes, one in twenty gets a block, every eighth
step a request finishes and another comes); the collector, in this process, reads it, publishes as it does live, and
makes the final file. CPU is this process's while it does so, the writing of the ring excluded.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from array import array
from pathlib import Path

import duckdb

from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import KeyframeRow, Writer
from fdtrace.recorder.collector.process import Collector
from fdtrace.recorder.session import Session

SEGMENT = 1 << 20

MEMORY = wire.AllocatorFigures(1 << 34, 1 << 35, 1 << 34, 1 << 35)


def call_figures(count: int) -> wire.CallFigures:
    """Those of a call with `count` running decodes."""
    return wire.CallFigures(
        token_budget=2048, num_scheduled_tokens=900, num_running=count, num_running_decodes=count, num_waiting=3,
        num_preempted=0, num_free_blocks=100, num_blocks=1000,
    )  # fmt: skip


class Engine:
    """Writes the frames of an engine with `count` running requests."""

    def __init__(self, directory: str, count: int, segments: int) -> None:
        page = ring.create(f"{directory}/1-1.ring", wire.PROTOCOL, time.time_ns(), segments, SEGMENT)
        self.count, self.made, self.rng = count, 0, random.Random(0)
        self.outputs = [0] * count
        self.blocks = [10] * count
        self.ids = [self.next_id() for _ in range(count)]
        engine = {"name": "benchmark", "max_num_batched_tokens": 5 * count, "pid": 1}
        self.writer = Writer(page, segments, SEGMENT, lambda: engine, lambda: map(self.row, range(count)))

    def next_id(self) -> str:
        self.made += 1
        return f"chatcmpl-{self.made:032d}"

    def row(self, slot: int) -> tuple[int, KeyframeRow]:
        computed = 100 + self.outputs[slot]
        return slot, KeyframeRow(self.ids[slot], 100, 200, computed, self.blocks[slot], 0, self.outputs[slot])

    def step(self, number: int) -> None:
        writer, count, rng = self.writer, self.count, self.rng
        writer.boundary()
        tokens = array("i", [5]) * count
        emitted = array("i", rng.choices((1, 2, 3, 4, 5), (40, 25, 15, 10, 10), k=count))
        prefills = b""
        if number % 8 == 0:
            slot = number // 8 % count
            writer.finish(self.ids[slot], "length", self.outputs[slot])
            self.ids[slot], self.outputs[slot], self.blocks[slot] = self.next_id(), 0, 10
            writer.request(self.ids[slot], time.time_ns(), 100, 200)
            writer.batch((slot,), [(slot, KeyframeRow(self.ids[slot], 100, 200, 0, 10, 0, 0))])
            tokens[slot], emitted[slot] = 100, 1
            prefills = (slot | wire.LAST_CHUNK).to_bytes(2, "little")
        grown = range(number % 20, count, 20)
        for slot in grown:
            self.blocks[slot] += 1
        writer.blocks([(slot, self.blocks[slot]) for slot in grown], True)
        writer.schedule(number, time.time_ns(), 300, "budget", call_figures(count))
        writer.forward(
            number, number, time.time_ns(), 20_000, -1, MEMORY, prefills, b"",
            memoryview(tokens), memoryview(emitted),
        )  # fmt: skip
        for slot, made in enumerate(emitted):
            self.outputs[slot] += made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=16_000)
    parser.add_argument("--requests", type=int, default=128)
    options = parser.parse_args()
    print("CPU s a million rows        reading and parts   final file   bytes a row   with all tables")
    for every in (2000, 100):
        run(options.steps, options.requests, every)


def run(steps: int, requests: int, every: int) -> None:
    """Record `steps` steps, published every so many; print the costs."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "t.duckdb"
        session = Session.create(out)
        engine = Engine(session.dir, requests, 16)
        collector = Collector(session)
        reading = 0.0
        for number in range(steps):
            engine.step(number)
            if number % every == every - 1:
                begun = time.process_time()
                collector.discover()
                collector.read()
                collector.publish()
                reading += time.process_time() - begun
        engine.writer.close()
        begun = time.process_time()
        collector.finish("steps")
        ending = time.process_time() - begun
        with duckdb.connect(str(out), read_only=True) as db:
            ((rows,),) = db.execute("SELECT count(*) FROM step_request").fetchall()
            ((lost,),) = db.execute("SELECT count(*) FROM event WHERE kind = 'lost'").fetchall()
        assert (rows, lost) == (steps * requests, 0)
        million, size = rows / 1e6, out.stat().st_size
        print(
            f"published every {every:5} steps {reading / million:19.3f} {ending / million:12.3f} "
            f"{table_bytes(out, directory) / rows:13.2f} {size / rows:17.2f}"
        )


def table_bytes(trace: Path, directory: str) -> int:
    """What the file would be smaller by without `step_request`."""
    alone = Path(directory) / "alone.duckdb"
    with duckdb.connect() as db:
        db.execute(f"ATTACH '{trace}' AS trace (READ_ONLY)")
        db.execute(f"ATTACH '{alone}' AS alone (STORAGE_VERSION 'v1.5.0', ROW_GROUP_SIZE 983040)")
        db.execute("CREATE TABLE alone.step_request AS FROM trace.step_request")
    return alone.stat().st_size


if __name__ == "__main__":
    main()
