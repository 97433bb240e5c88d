"""Which scheduling call a forward belongs to, and what of its figures has been told already."""

from __future__ import annotations

from typing import Any

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.decoder import NO_SCHEDULE
from fdtrace.recorder.recording import MISSING

MOST = 200_000
"""Calls kept for forwards that may still come: an engine whose workers are not recorded has none."""

DURATION, SCHEDULED, PREEMPTED, FLAGS = 1, 4, 8, 13
"""Places in a call's figures, which are in the order of `NO_SCHEDULE`."""


class Calls:
    """The scheduling calls of one engine that forwards may still belong to."""

    def __init__(self) -> None:
        self.figures: dict[int, tuple[int, ...]] = {}
        self.last = MISSING
        self.next_call = 0

    def add(self, frame: tuple[int, ...]) -> None:
        """A scheduling call, as its frame says."""
        _, reason, flags, duration, call, ts, *figures = frame
        self.figures[call] = (ts, duration, reason, *figures, flags)
        self.next_call = call + 1
        if len(self.figures) > MOST:
            del self.figures[next(iter(self.figures))]

    def of_forward(self, landed: int, ts: int, resolve: bool) -> tuple[tuple[int, ...], int]:
        """The figures of the call that a forward begun at `ts` belongs to, and the call.

        What a call did once (its time, the tokens it handed out, its preemptions) is told with its first forward.
        """
        call = max(landed, self.last) if resolve else landed
        while resolve and self._is_empty_before(call + 1, ts):
            call += 1
        found = self.figures.get(call)
        if found is None:
            return NO_SCHEDULE, call
        told = list(found)
        if call == self.last:
            told[DURATION] = told[SCHEDULED] = MISSING
            told[PREEMPTED] = 0
        else:
            told[PREEMPTED] = sum(
                self.figures[n][PREEMPTED] for n in range(self.last + 1, call + 1) if n in self.figures
            )
        for number in [number for number in self.figures if number < call]:
            del self.figures[number]
        self.last = call
        return tuple(told), call

    def _is_empty_before(self, call: int, ts: int) -> bool:
        found = self.figures.get(call)
        return (
            found is not None and bool(found[FLAGS] & wire.EMPTY) and found[0] + 1000 * found[DURATION] <= ts
        )

    def state(self) -> dict[str, Any]:
        """As JSON."""
        figures = {str(call): list(told) for call, told in self.figures.items()}
        return {"figures": figures, "last": self.last, "next_call": self.next_call}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.figures = {int(call): tuple(told) for call, told in state["figures"].items()}
        self.last, self.next_call = state["last"], state["next_call"]
