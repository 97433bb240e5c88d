"""Rows of the table `call`: a scheduling call or a run of equal idle calls, and the forward that its tasks entered."""

from __future__ import annotations

from typing import Any

import numpy as np

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.columns import columns_by_name, reservations
from fdtrace.recorder.collector.frames import CallFrame
from fdtrace.recorder.trace.column_values import MISSING, ColumnArrays

MOST_WAITING = 200_000
"""Most calls that wait for their forward: the workers' rings may be read much later than the engine's ring."""

MOST_WITHOUT_FORWARDS = 4096
"""Most calls that wait before the first forward was seen. Fewer, because none may ever come: perhaps the workers are
not recorded."""

MOST_LIVE = 256
"""While the recording is in progress, at most so many calls without a forward are shown: the newest."""


class CallRows:
    """The calls of one engine, in order. `take` returns those whose row is complete.

    While the engine runs, a last call that is idle is never complete: more calls like it may follow.
    """

    def __init__(self, engine_id: int) -> None:
        self.engine_id = engine_id
        self.num_calls = 0
        self.waiting: dict[int, CallFrame] = {}
        self.first_step: dict[int, int] = {}
        """The first forward of waiting calls, as far as it is known."""
        self.complete: list[tuple[CallFrame, int]] = []
        self.known_from = 0
        """The first call whose forward can be known. The tasks of earlier calls may have entered a lost forward."""
        self.seen_forward = False

    def add(self, call: CallFrame) -> None:
        """Add a call, or the latest state of a run of idle calls."""
        number = call.head.call
        earlier_frame = self.waiting.get(number)
        self.num_calls += call.head.num_calls - (
            earlier_frame.head.num_calls if earlier_frame is not None else 0
        )
        self.waiting[number] = call
        most = MOST_WAITING if self.seen_forward else MOST_WITHOUT_FORWARDS
        while len(self.waiting) > 1:
            first, earliest = next(iter(self.waiting.items()))
            if not (earliest.is_empty or first in self.first_step or len(self.waiting) > most):
                break
            self._finish(first)

    def entered(self, number: int, step: int, *, named: bool = False) -> None:
        """The tasks of all calls up to `number` have entered a forward: that of `step`, if no earlier one was reported.

        `named`: the forward names `number` as its own call, even if that call handed out nothing.
        """
        self.seen_forward = True
        while self.waiting:
            first = next(iter(self.waiting))
            call = self.waiting[first]
            if first > number:
                return
            own = not call.is_empty or (named and first == number)
            if own and first >= self.known_from:
                self.first_step.setdefault(first, step)
            if call.is_empty and len(self.waiting) == 1:
                return
            self._finish(first)

    def lose(self, tasks_are_reported: bool) -> None:
        """Forwards were lost. `tasks_are_reported`: `tasks_arrived` will report tasks after the loss."""
        self.known_from = (
            1 << 62 if tasks_are_reported else max(self.waiting, default=self.known_from - 1) + 1
        )

    def tasks_arrived(self, number: int) -> None:
        """The tasks of a call have reached the worker. No forward has begun since then."""
        self.known_from = min(self.known_from, number)

    def _finish(self, number: int) -> None:
        self.complete.append((self.waiting.pop(number), self.first_step.pop(number, MISSING)))

    def take(self, *, final: bool) -> list[ColumnArrays]:
        """Columns of the rows that have become complete since the last call. `final`: of all remaining rows."""
        for number in list(self.waiting) if final else ():
            self._finish(number)
        rows, self.complete = self.complete, []
        return [self._columns(rows)] if rows else []

    def live(self) -> ColumnArrays:
        """Columns of the newest rows that are not complete yet."""
        newest = list(self.waiting.items())[-MOST_LIVE:]
        return self._columns([(call, self.first_step.get(number, MISSING)) for number, call in newest])

    def _columns(self, rows: list[tuple[CallFrame, int]]) -> ColumnArrays:
        heads = columns_by_name(wire.ScheduleHead._fields, [call.head for call, _ in rows])
        figures = columns_by_name(wire.CallFigures._fields, [call.figures for call, _ in rows])
        return {
            **figures,
            **reservations(heads, figures),
            **heads,
            "engine_id": np.full(len(rows), self.engine_id, np.int64),
            "idle": heads["flags"] & wire.EMPTY,
            "first_step": np.array([step for _, step in rows], np.int64),
        }

    def state(self) -> dict[str, Any]:
        """All that a successor needs to go on, as JSON. Call it after `take`."""
        return {
            "num_calls": self.num_calls, "known_from": self.known_from, "seen_forward": self.seen_forward,
            "waiting": [[*call, self.first_step.get(number, MISSING)] for number, call in self.waiting.items()],
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state`."""
        self.num_calls, self.known_from = state["num_calls"], state["known_from"]
        self.seen_forward = state["seen_forward"]
        for head, figures, step in state["waiting"]:
            call = CallFrame.restored(head, figures)
            self.waiting[call.head.call] = call
            if step >= 0:
                self.first_step[call.head.call] = step
