"""A flight recorder whose engine is driven by hand: its steps come at the times that the caller says."""

from __future__ import annotations

import contextlib
import json
from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fdtrace.flights.dropped_sums import DroppedSums
from fdtrace.flights.step_conditions import check_triggers
from fdtrace.recorder.agent import ring, wire
from fdtrace.recorder.agent.writer import KeyframeRow, Writer
from fdtrace.recorder.flight.flight_collector import FlightCollector
from fdtrace.recorder.flight.flight_directory import FlightDirectory
from fdtrace.recorder.flight.flight_plan import SECOND, FlightPlan
from fdtrace.recorder.session import Session
from tests.recorder.helpers import query

BEGUN = 2_000_000_000 * SECOND
"""The time of step 0: in the future, so that the machine's clock never comes after the steps'."""

SEGMENT = 1 << 20
LIMIT, PROMPT = 64, 8
MEMORY = wire.AllocatorFigures(1 << 34, 1 << 35, 1 << 34, 1 << 35)


class DrivenFlight:
    """Its engine has `rows` running requests that decode; each eighth step, one ends and another comes.

    `conditions`: as with --on. `segments`: of the ring of the agent.
    """

    def __init__(
        self, directory: Path, plan: FlightPlan, conditions: Sequence[str] = (), *, rows: int = 2, segments: int = 4
    ) -> None:  # fmt: skip
        self.directory, self.conditions, self.rows = FlightDirectory(directory), list(conditions), rows
        self.counts = plan.counts
        directory.mkdir(exist_ok=True)
        self.session = Session.create(
            self.directory.ring, flight=replace(plan, on=tuple(conditions)).as_json()
        )
        page = ring.create(f"{self.session.dir}/1-1.ring", wire.PROTOCOL, BEGUN, segments, SEGMENT)
        self.ids = [f"r{row}" for row in range(rows)]
        self.outputs, self.made, self.number = [0] * rows, rows, 0
        about = {
            "name": "driven", "max_num_batched_tokens": LIMIT, "max_num_seqs": rows, "pid": 1, "block_size": 16,
            "num_blocks": 1000, "max_model_len": 4096, "num_speculative_tokens": 0, "config": {}, "role": "mixed",
        }  # fmt: skip
        self.writer = Writer(page, segments, SEGMENT, lambda: about, lambda: map(self._row, range(rows)))
        self.collector = self.collect_anew()

    def collect_anew(self) -> FlightCollector:
        """A collector of what is there, as the one that follows a killed one."""
        dropped = DroppedSums() if self.counts else None
        self.collector = FlightCollector(self.session, check_triggers(self.conditions), dropped=dropped)
        self.collector.flight.newest = max(self.collector.flight.newest, BEGUN)
        return self.collector

    def close_here(self) -> None:
        """Its collector in this process ends as if it were killed."""
        self.collector.store.close()
        self.collector.lock.release()

    def _row(self, slot: int) -> tuple[int, KeyframeRow]:
        made = self.outputs[slot]
        return slot, KeyframeRow(self.ids[slot], PROMPT, 1 << 20, PROMPT + made, 1 + made // 16, 0, made)

    def step(self, ts: int, *, tokens: int = 1, waiting: int = 0, forward_us: int = 100) -> int:
        """One step at a time (ns since step 0), in which each row runs so many tokens. Returns its number."""
        writer, number, at = self.writer, self.number, BEGUN + ts
        writer.boundary()
        ran = array("i", [tokens]) * self.rows
        emitted, prefills = array("i", [1]) * self.rows, b""
        if number and number % 8 == 0:
            slot = number // 8 % self.rows
            writer.finish(self.ids[slot], "length", self.outputs[slot])
            self.ids[slot], self.outputs[slot] = f"r{self.made}", 0
            self.made += 1
            writer.request(self.ids[slot], at, PROMPT, 1 << 20)
            writer.batch((slot,), [(slot, KeyframeRow(self.ids[slot], PROMPT, 1 << 20, 0, 1, 0, 0))])
            ran[slot], prefills = PROMPT, (slot | wire.LAST_CHUNK).to_bytes(2, "little")
        figures = wire.CallFigures(
            token_budget=LIMIT, num_scheduled_tokens=sum(ran), num_running=self.rows, num_running_decodes=self.rows,
            num_waiting=waiting, num_preempted=0, num_free_blocks=100, num_blocks=1000,
        )  # fmt: skip
        writer.schedule(number, at, 10, "", figures)
        writer.forward(
            number, number, at, forward_us, -1, MEMORY, prefills, b"", memoryview(ran), memoryview(emitted)
        )
        self.outputs = [made + 1 for made in self.outputs]
        self.number += 1
        return number

    def stand_still(self, ts: int) -> None:
        """A call at a time (ns since step 0) that finds work and hands out nothing."""
        figures = wire.CallFigures(
            token_budget=LIMIT, num_scheduled_tokens=0, num_running=0, num_waiting=3, num_deferred=0, num_free_blocks=1,
            num_blocks=1000, num_missing_blocks=7, num_preempted=0, num_aborted=0,
        )  # fmt: skip
        self.writer.schedule(self.number, BEGUN + ts, 10, "blocks", figures, wire.EMPTY)

    def checkpoint(self, ts: int, *, missing: int = 0, between: Callable[[], None] = lambda: None) -> None:
        """What an agent writes for a flight before the call of the next step: the last row's request first.

        Args:
            ts: ns since step 0.
            missing: how many requests it names more than follow.
            between: happens before its last frame.
        """
        engine = {
            "place": "engine",
            "num_requests": self.rows + missing,
            "admits_new": True,
            "num_cached_blocks": 3,
        }
        self._event(ts, -1, engine)
        for at, row in enumerate(reversed(range(self.rows))):
            total = PROMPT + self.outputs[row]
            detail = {
                "place": "running", "num_computed_tokens": total, "num_total_tokens": total,
                "num_blocks": 1 + total // 16,
            }  # fmt: skip
            self._event(ts + at + 1, self.writer.number(self.ids[row]), detail)
        between()
        head = wire.HashesHead(wire.HASHES, 0, 0, wire.AT_CHECKPOINT, num_hashes=3, block_size=16)
        self.writer.put(wire.HASHES_HEAD.struct.pack(*head) + bytes(range(24)))

    def _event(self, ts: int, request: int, detail: dict[str, Any]) -> None:
        text = json.dumps(detail).encode()
        code = wire.EVENTS.index("checkpoint")
        head = wire.EventHead(wire.EVENT, code, 0, len(text), request, 0, self.number, BEGUN + ts)
        self.writer.put(wire.EVENT_HEAD.struct.pack(*head) + text)

    def publish(self) -> None:
        """What the collector's loop does every 1.5 s."""
        self.collector.discover()
        self.collector.read()
        self.collector.publish()

    def end(self, reason: str = "detach") -> None:
        """The recording ends."""
        with contextlib.suppress(ValueError):  # it is closed already
            self.writer.close()
        self.collector.finish(reason)

    def kept_steps(self) -> dict[str, tuple[int, int]]:
        """The first and the last step of each kept trace, by what fired."""
        found = {}
        for path in self.directory.kept:
            ((first, last),) = query(path, "SELECT min(step), max(step) FROM step")
            found[path.stem.partition("Z-")[2]] = first, last
        return found
