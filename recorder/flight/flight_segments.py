"""The ring of a flight recorder: segments of parts, each with the state in which its engines were when it began.

A kept trace begins where a segment begins. To replay it, one needs what a recording says that was attached at that
moment. Which requests ran, with how many tokens and blocks, the collector knows itself of each step. If an engine
schedules ahead of its forwards, or has batches in flight, that is not enough: it writes what it finds now and then (a
checkpoint), at times that the collector knows. A segment begins right before such a time, and a kept trace begins with
the first checkpoint of its first segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fdtrace.recorder.collector.engine import Engine
from fdtrace.recorder.collector.found_state import Checkpoint
from fdtrace.recorder.flight.flight_plan import SECOND, SEGMENTS, FlightPlan
from fdtrace.recorder.flight.flight_store import FlightStore, serial_of

LEAD_NS = 5 * SECOND // 2
"""A segment begins at the last publication before a checkpoint: at most so long before it."""


@dataclass(frozen=True)
class CutCall:
    """The call with which an engine's part of a kept trace begins: a checkpoint (`collector.found_state`).

    Args:
        call: its number.
        begins: when it wrote the first of what it found, ns, UTC.
        ends: when it wrote the last.
        next_request: requests with smaller numbers were known then.
        step: the step of the call, if its engine has no order of calls beside its steps; else -1.
    """

    call: int
    begins: int
    ends: int
    next_request: int
    step: int = -1


@dataclass(frozen=True)
class EngineSnapshot:
    """An engine between two steps.

    Args:
        step: the step that comes next.
        held: for each request that holds a row of the batch: its number, its computed tokens, its prompt and output
            tokens (-1: not known), its blocks.
        call: the first checkpoint of the segment; None: there is none.
    """

    step: int
    held: tuple[tuple[int, int, int, int], ...] = ()
    call: CutCall | None = None

    @classmethod
    def of(cls, engine: Engine) -> EngineSnapshot:
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
    cuts: Mapping[int, EngineSnapshot] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        cuts = {
            str(engine): [cut.step, cut.held, asdict(cut.call) if cut.call else None]
            for engine, cut in self.cuts.items()
        }
        return {"serial": self.serial, "begins": self.begins, "cuts": cuts}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Segment:
        """The segment of which `as_json` gave the fields."""
        cuts = {
            int(engine): EngineSnapshot(
                int(step), tuple((a, b, c, d) for a, b, c, d in held), CutCall(**call) if call else None
            )
            for engine, (step, held, *calls) in fields["cuts"].items()
            for call in (calls[0] if calls else None,)
        }
        return cls(int(fields["serial"]), int(fields["begins"]), cuts)

    @property
    def known_from(self) -> int:
        """When the last of its engines wrote its checkpoint, ns, UTC; if none did: when it began."""
        return max([self.begins, *(cut.call.begins for cut in self.cuts.values() if cut.call)])


class DropWatcher(Protocol):
    """Gets parts before they go. Its state must be JSON: it is committed together with the parts that are left."""

    def dropping(self, parts: Mapping[str, Sequence[Path]], state: Path) -> None:
        """These parts go now. `state`: the published database."""

    def state(self) -> dict[str, Any]:
        """What a successor needs to go on."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved `state`."""


class FlightSegments:
    """The segments of a ring, oldest first; the last one is being filled."""

    def __init__(self, plan: FlightPlan, store: FlightStore, begins: int) -> None:
        """`begins`: when the recording began, ns, UTC."""
        self.plan, self.store = plan, store
        self.all = [Segment(0, begins)]
        self.begins = begins
        self.watcher: DropWatcher | None = None
        """Gets the parts that are about to go."""
        self._sizes: dict[str, int] = {}
        self._arranged = begins

    def note(self, engine_id: int, checkpoints: Iterable[Checkpoint]) -> None:
        """Checkpoints of an engine were decoded, and their rows go to the last segment.

        Only those count that the engine wrote after the segment had begun: then all that came after them is in it.
        """
        last = self.all[-1]
        cut = last.cuts.get(engine_id)
        if cut is None or cut.call is not None:
            return
        for one in checkpoints:
            if one.begins >= last.begins:
                call = CutCall(one.call, one.begins, one.ends, one.next_request, one.step)
                cuts = {**last.cuts, engine_id: replace(cut, call=call)}
                self.all[-1] = replace(last, cuts=cuts)
                return

    def arrange(self, now: int, engines: Iterable[Engine], pinned: int | None) -> None:
        """End the current segment if it is long enough, and drop those that the window no longer needs.

        Args:
            now: ns, UTC.
            engines: with all their frames decoded and taken.
            pinned: parts from this number on are still needed; None: none is.
        """
        self.store.compact()
        engines = list(engines)
        if self._is_full(now, engines):
            self.store.seal()
            cuts = {engine.engine_id: EngineSnapshot.of(engine) for engine in engines if engine.num_steps}
            self.all.append(Segment(self.store.serial + 1, now, cuts))
        self._arranged = now
        keep_from = self.all[0].serial
        while len(self.all) > 1 and self._is_old(now) and (pinned is None or self.all[1].serial <= pinned):
            del self.all[0]
        if self.all[0].serial != keep_from:
            if self.watcher is not None and self.store.published is not None:
                self.watcher.dropping(self._parts_before(keep_from, self.all[0].serial), self.store.path)
            self.store.drop_before(self.all[0].serial)

    def is_settled(self, now: int, engines: Iterable[Engine]) -> bool:
        """Whether `arrange` would change nothing, if nothing is pinned."""
        return not self._is_full(now, engines) and not (len(self.all) > 1 and self._is_old(now))

    def _is_full(self, now: int, engines: Iterable[Engine]) -> bool:
        """Whether the last segment is long enough, and the next one would begin right before a checkpoint, if any."""
        has_checkpoints = any(engine.agent_says_what_it_found for engine in engines)
        last, plan = self.all[-1], self.plan
        if self.store.serial < last.serial:
            return False  # nothing came since it began
        soon = self._checkpoints_by(now) > self._checkpoints_by(self._arranged)
        if plan.window_ns is not None:
            return soon if has_checkpoints else now - last.begins >= plan.window_ns // SEGMENTS
        size, wanted = self.num_bytes(last.serial), (plan.window_bytes or 0) // SEGMENTS
        return size >= wanted and (soon or not has_checkpoints or size >= 2 * wanted)

    def _checkpoints_by(self, ts: int) -> int:
        """How many checkpoints an engine has been asked for until soon after a time (ns, UTC)."""
        return (ts + LEAD_NS - self.begins) // self.plan.checkpoint_ns

    def _is_old(self, now: int) -> bool:
        """Whether the window does not need the oldest segment."""
        plan = self.plan
        if plan.window_ns is not None:
            return self.all[1].known_from <= now - plan.window_ns
        return self.num_bytes(self.all[0].serial) > (plan.window_bytes or 0)

    def _parts_before(self, first: int, end: int) -> dict[str, list[Path]]:
        """The parts of each table with numbers from `first` to before `end`."""
        return {
            table: [self.store.directory / name for name in names if serial_of(name) < end]
            for table, names in self.store.names_from(first).items()
        }

    def window(self, serial: int, before: int) -> Segment:
        """The oldest segment with parts from a number on. If it has no checkpoint of an engine, that engine's part of
        the window begins with the first one in a later segment, if that was written before a time (ns, UTC).
        """
        kept = [one for one in self.all if one.serial >= serial] or self.all[-1:]
        cuts = dict(kept[0].cuts)
        for engine_id, cut in kept[0].cuts.items():
            if cut.call is None:
                known = (one.cuts.get(engine_id) for one in kept)
                later = (one for one in known if one is not None and one.call and one.call.begins < before)
                cuts[engine_id] = next(later, cut)
        return replace(kept[0], cuts=cuts)

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
        self._arranged = self.all[-1].begins
