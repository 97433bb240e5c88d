"""Which triggers of a flight recorder keep a trace: those that are not too soon after another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

from fdtrace.recorder.flight.firing import FiredTrigger
from fdtrace.recorder.flight.flight_plan import FlightPlan

MOST_FIRINGS = 100
"""Most triggers that one kept trace names. It counts the others."""

MOST_SLUG = 40


def name_at(ts: int, trigger: str) -> str:
    """A name that says when and why, and sorts by time."""
    moment = datetime.fromtimestamp(ts // 1_000_000_000, timezone.utc)
    slug = re.sub("[^a-z0-9]+", "-", trigger.lower()).strip("-")[:MOST_SLUG].strip("-")
    return f"{moment:%Y%m%dT%H%M%S}.{ts // 1_000_000 % 1000:03d}Z-{slug or 'kept'}"


NAME = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{3}Z-[a-z0-9-]{1,50}")
"""What `name_at` gives."""


@dataclass
class ScheduledKeep:
    """A trace that is to be kept as soon as its end has come.

    Args:
        name: its file name without `.duckdb`.
        due: when its window ends, ns, UTC.
        serial: the first part of its window.
        firings: the triggers that fired in it, the one that keeps it first.
        num_firings: their number, also of those that are not in the list.
        suppressed: triggers that kept nothing since the trace that was kept before, by trigger.
        request: the file with which `fdtrace keep` asked for it.
    """

    name: str
    due: int
    serial: int
    firings: list[FiredTrigger]
    num_firings: int = 1
    suppressed: Counter[str] = field(default_factory=Counter)
    request: str = ""

    def add(self, firing: FiredTrigger) -> None:
        """Another trigger fired in this window."""
        self.num_firings += 1
        if len(self.firings) < MOST_FIRINGS:
            self.firings.append(firing)

    def as_json(self) -> dict[str, Any]:
        """The fields."""
        return {**vars(self), "firings": [firing.as_json() for firing in self.firings]}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> ScheduledKeep:
        """The one of which `as_json` gave the fields."""
        if not NAME.fullmatch(str(fields["name"])):
            raise ValueError("a kept trace has no such name")
        firings = [FiredTrigger.from_json(firing) for firing in fields["firings"]]
        return cls(**{**fields, "firings": firings, "suppressed": Counter(fields["suppressed"])})


class KeepQueue:
    """The kept traces that wait for their end, and the triggers that came too soon."""

    def __init__(self, plan: FlightPlan) -> None:
        self.plan = plan
        self.waiting: list[ScheduledKeep] = []
        self.suppressed: Counter[str] = Counter()
        self.num_suppressed = 0
        self.last: int | None = None
        """When the last trigger that counts for the limit kept a trace, ns, UTC."""

    def fire(self, firing: FiredTrigger, serial: int) -> None:
        """A trigger fired. `serial`: the first part of the window."""
        for keep in self.waiting:
            if firing.limited and firing.ts <= keep.due:
                keep.add(firing)
                return
        if not firing.limited:
            self._add(ScheduledKeep(self._free_name(firing), firing.ts, serial, [firing]))
        elif self.last is not None and firing.ts < self.last + self.plan.at_most_every_ns:
            self.suppressed[firing.trigger] += 1
            self.num_suppressed += 1
        else:
            self.last = firing.ts
            self._add(
                ScheduledKeep(self._free_name(firing), firing.ts + self.plan.after_ns, serial, [firing])
            )

    def ask(self, request: str, why: str, now: int, serial: int) -> None:
        """`fdtrace keep` asks for a trace of what is there now. A request that is known already changes nothing."""
        if all(keep.request != request for keep in self.waiting):
            firing = FiredTrigger("keep", now, why=why, limited=False)
            self._add(ScheduledKeep(self._free_name(firing), now, serial, [firing], request=request))

    def _add(self, keep: ScheduledKeep) -> None:
        keep.suppressed, self.suppressed = self.suppressed, Counter()
        self.waiting.append(keep)

    def _free_name(self, firing: FiredTrigger) -> str:
        name, taken = name_at(firing.ts, firing.trigger), {keep.name for keep in self.waiting}
        return next(free for free in (name, *(f"{name}-{i}" for i in range(2, 99))) if free not in taken)

    def end(self, now: int) -> None:
        """Nothing more comes: what waits ends now."""
        for keep in self.waiting:
            keep.due = min(keep.due, now)

    def due(self, now: int) -> list[ScheduledKeep]:
        """Those whose end has come."""
        return [keep for keep in self.waiting if keep.due <= now]

    @property
    def pinned(self) -> int | None:
        """Parts from this number on are needed by those that wait. Without a limit by time, none is kept for them."""
        if self.plan.window_ns is None:
            return None
        return min((keep.serial for keep in self.waiting), default=None)

    def state(self) -> dict[str, Any]:
        """The state as JSON."""
        return {
            "waiting": [keep.as_json() for keep in self.waiting],
            "suppressed": self.suppressed, "num_suppressed": self.num_suppressed, "last": self.last,
        }  # fmt: skip

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved `state`."""
        self.waiting = [ScheduledKeep.from_json(fields) for fields in state["waiting"]]
        self.suppressed, self.num_suppressed = Counter(state["suppressed"]), int(state["num_suppressed"])
        self.last = state["last"]
