"""The ring of a flight recorder: segments of parts, each with the state in which its engines were when it began.

A kept trace begins where a segment begins. To replay it, one needs what a recording says that was attached at that
moment: which requests ran, with how many tokens and blocks. The collector knows that of each step, so no engine has to
be asked again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fdtrace.recorder.collector.engine import Engine
from fdtrace.recorder.flight.flight_plan import FlightPlan
from fdtrace.recorder.flight.flight_store import FlightStore, serial_of

SEGMENTS = 8
"""The window is so many segments, and one more is being filled: a kept trace may have an eighth more than asked for."""


@dataclass(frozen=True)
class EngineCut:
    """An engine between two steps.

    Args:
        step: the step that comes next.
        held: for each request that holds a row of the batch: its number, its computed tokens, its prompt and output
            tokens (-1: not known), its blocks.
    """

    step: int
    held: tuple[tuple[int, int, int, int], ...] = ()

    @classmethod
    def of(cls, engine: Engine) -> EngineCut:
        """An engine as it is when all its frames so far are decoded and taken."""
        batch, live = engine.steps.batch, engine.ledger.live
        held = []
        for row in np.flatnonzero(batch.request >= 0).tolist():
            number = int(batch.request[row])
            request = live.get(number)
            if request is not None:
                known = request.num_prompt_tokens >= 0
                total = request.num_prompt_tokens + request.num_output_tokens if known else -1
                held.append((number, int(batch.computed[row]), total, int(batch.blocks[row])))
        return cls(engine.step + 1, tuple(held))


@dataclass(frozen=True)
class Segment:
    """A piece of the ring: the parts numbered from `serial` to the next segment's.

    Args:
        serial: the number of its first part.
        begins: when it began, ns, UTC.
        cuts: by engine; an engine that is missing had run nothing by then.
    """

    serial: int
    begins: int
    cuts: Mapping[int, EngineCut] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        cuts = {str(engine): [cut.step, cut.held] for engine, cut in self.cuts.items()}
        return {"serial": self.serial, "begins": self.begins, "cuts": cuts}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Segment:
        """The segment of which `as_json` gave the fields."""
        cuts = {
            int(engine): EngineCut(int(step), tuple((a, b, c, d) for a, b, c, d in held))
            for engine, (step, held) in fields["cuts"].items()
        }
        return cls(int(fields["serial"]), int(fields["begins"]), cuts)


class FlightSegments:
    """The segments of a ring, oldest first; the last one is being filled."""

    def __init__(self, plan: FlightPlan, store: FlightStore, begins: int) -> None:
        """`begins`: when the recording began, ns, UTC."""
        self.plan, self.store = plan, store
        self.all = [Segment(0, begins)]
        self._sizes: dict[str, int] = {}

    def arrange(self, now: int, engines: Iterable[Engine], pinned: int | None) -> None:
        """End the current segment if it is long enough, and drop those that the window no longer needs.

        Args:
            now: ns, UTC.
            engines: with all their frames decoded and taken.
            pinned: parts from this number on are still needed; None: none is.
        """
        self.store.compact()
        if self._is_full(now):
            self.store.seal()
            cuts = {engine.engine_id: EngineCut.of(engine) for engine in engines if engine.num_steps}
            self.all.append(Segment(self.store.serial + 1, now, cuts))
        keep_from = self.all[0].serial
        while len(self.all) > 1 and self._is_old(now) and (pinned is None or self.all[1].serial <= pinned):
            del self.all[0]
        if self.all[0].serial != keep_from:
            self.store.drop_before(self.all[0].serial)

    def _is_full(self, now: int) -> bool:
        last, plan = self.all[-1], self.plan
        if self.store.serial < last.serial:
            return False  # nothing came since it began
        if plan.window_ns is not None:
            return now - last.begins >= plan.window_ns // SEGMENTS
        return self.num_bytes(last.serial) >= (plan.window_bytes or 0) // SEGMENTS

    def _is_old(self, now: int) -> bool:
        """Whether the window does not need the oldest segment."""
        plan = self.plan
        if plan.window_ns is not None:
            return self.all[1].begins <= now - plan.window_ns
        return self.num_bytes(self.all[0].serial) > (plan.window_bytes or 0)

    def num_bytes(self, serial: int) -> int:
        """Bytes of the parts from this number on."""
        names = [name for levels in self.store.parts.values() for level in levels for name in level]
        fresh = [name for name in names if name not in self._sizes]
        self._sizes = {name: self._sizes[name] for name in names if name in self._sizes}
        self._sizes |= {name: self.store.bytes_of([name]) for name in fresh}
        return sum(size for name, size in self._sizes.items() if serial_of(name) >= serial)

    def state(self) -> list[dict[str, Any]]:
        """The segments as JSON."""
        return [segment.as_json() for segment in self.all]

    def restore(self, state: list[Mapping[str, Any]]) -> None:
        """Go on from a saved `state`."""
        self.all = [Segment.from_json(fields) for fields in state]
