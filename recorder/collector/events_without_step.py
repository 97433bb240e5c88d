"""Events of the scheduling process that wait until their step is known."""

from __future__ import annotations

from typing import Any

from fdtrace.recorder.collector.ledger import Ledger


class UndatedEvents:
    """`waiting`: call, kind, request, ts, reason and detail of each event, in the order in which they came."""

    def __init__(self) -> None:
        self.waiting: list[list[Any]] = []

    def add(self, call: int, kind: str, number: int, ts: int, reason: str, detail: str | None) -> None:
        """Add an event that belongs to the first forward of a scheduling call, or of a later call."""
        self.waiting.append([call, kind, number, ts, reason, detail])

    def date(self, call: int, step: int, ledger: Ledger) -> None:
        """`step` is the first forward of every call up to `call` that has waiting events: pass these to the ledger."""
        if all(event[0] > call for event in self.waiting):
            return
        later = []
        for event in self.waiting:
            due, kind, number, ts, reason, detail = event
            if due > call:
                later.append(event)
                continue
            if kind == "preempted":
                ledger.preempted(number)
            elif kind == "arrived" and number in ledger.live:
                ledger.live[number].arrived_step = step
            ledger.event(kind, step, number, ts, reason, detail, call=due)
        self.waiting = later

    def state(self) -> list[list[Any]]:
        """The state as JSON."""
        return self.waiting

    def restore(self, state: list[list[Any]]) -> None:
        """Go on from a saved `state`."""
        self.waiting = state
