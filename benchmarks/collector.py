"""What the collector costs: CPU seconds a million `step_request` rows, and bytes a row in the final file.

    python benchmarks/collector.py [--steps N] [--requests N]
    python benchmarks/collector.py --live SECONDS [--rate STEPS_A_SECOND] [--requests N]

Twice: published every 2000 steps, which shows what a row costs, and every 100, about a second of an engine, which adds
what a publication costs. With --live, the collector runs as it really does: a process of its own beside one that writes
`--rate` steps a second, published by the clock. Its CPU time is that of the kernel (`schedstat`), from the tenth second
on; a rate of 0 is an engine that is attached and idle.

A writer fills a ring as an engine's agent does (every running request decodes, one in twenty gets a block, every eighth
step a request finishes and another comes); the collector, in this process, reads it, publishes as it does live, and
makes the final file. CPU is this process's while it does so, the writing of the ring excluded.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import tempfile
import time
from array import array
from multiprocessing.synchronize import Event
from pathlib import Path

import duckdb

from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import KeyframeRow, Writer
from fdtrace.recorder.collector.process import Collector
from fdtrace.recorder.session import Session
from fdtrace.recorder.supervise import Supervisor

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
    parser.add_argument("--live", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--rate", type=int, default=100, help="steps a second, with --live")
    options = parser.parse_args()
    if options.live:
        live(options.live, options.rate, options.requests)
        return
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


WARM_UP = 10.0
"""Seconds before the measurement: by then parts have been merged too."""


def live(seconds: float, rate: int, requests: int) -> None:
    """Run a collector beside an engine for so long; print its share of a core."""
    with tempfile.TemporaryDirectory() as directory:
        session = Session.create(Path(directory) / "t.duckdb")
        ends = multiprocessing.Event()
        writer = multiprocessing.Process(target=write, args=(session.dir, requests, rate, ends))
        supervisor = Supervisor(session)
        try:
            writer.start()
            steps = steps_after(supervisor, WARM_UP)
            spent, begun = cpu_of(supervisor.process.pid), time.monotonic()
            more = steps_after(supervisor, seconds)
            spent, lasted = cpu_of(supervisor.process.pid) - spent, time.monotonic() - begun
            rows = max(0, more - steps) * requests  # an idle one reports no steps
            a_million = f", {spent / rows * 1e6:.2f} CPU s a million rows" if rows else ""
            print(
                f"{requests} requests, {rows / requests / lasted:.1f} steps a second: {spent / lasted:.4f} of a core, "
                f"{spent / lasted * 1.5e3:.1f} ms in 1.5 s{a_million}"
            )
        finally:
            ends.set()
            writer.join()
            supervisor.cancel()
            session.remove_rings()


def write(directory: str, requests: int, rate: int, ends: Event) -> None:
    """Write steps at a rate; at 0, one step and then none."""
    engine, number, begun = Engine(directory, requests, 16), 0, time.monotonic()
    while not ends.wait(max(0.0, begun + number / (rate or 1) - time.monotonic())):
        if rate or not number:
            engine.step(number)
        number += 1
    engine.writer.close()


def steps_after(supervisor: Supervisor, seconds: float) -> int:
    """Wait so long. Returns the steps that the collector reported last."""
    steps, until = 0, time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        for message in supervisor.poll(min(left, 1.0)):
            steps = message.get("steps", steps)
    return steps


def cpu_of(pid: int) -> float:
    """CPU seconds of all threads of a process, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


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
