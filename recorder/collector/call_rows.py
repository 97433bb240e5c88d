"""Rows of the table `call`: a scheduling call, or a run of equal idle ones, and the forward that its tasks entered."""

from __future__ import annotations

from typing import Any

import numpy as np
from fdtrace.recorder.trace.column_values import MISSING, ColumnArrays

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.columns import columns_by_name, reservations
from fdtrace.recorder.collector.frames import CallFrame

MOST_WAITING = 200_000
"""Calls kept until their forward comes: the workers' rings may be read much later than the engine's."""

MOST_WITHOUT_FORWARDS = 4096
"""The same while no forward was seen at all: the workers may not be recorded."""

MOST_LIVE = 256
"""Of the calls whose forward has not come, the newest that are shown while the recording goes on."""


class CallRows:
    """The calls of one engine, in order; `take` gives those whose row is whole.

    The last one is never whole while the engine runs if it is idle: more of its kind may follow.
    """

    def __init__(self, engine_id: int) -> None:
        self.engine_id = engine_id
        self.num_calls = 0
        self.waiting: dict[int, CallFrame] = {}
        self.first_step: dict[int, int] = {}
        """Of the calls that wait, where it is known."""
        self.whole: list[tuple[CallFrame, int]] = []
        self.known_from = 0
        """Tasks of earlier calls entered a forward that may be lost."""
        self.seen_forward = False

    def add(self, call: CallFrame) -> None:
        """A call, or what is known by now of a run of idle ones."""
        number = call.head.call
        known = self.waiting.get(number)
        self.num_calls += call.head.num_calls - (known.head.num_calls if known is not None else 0)
        self.waiting[number] = call
        most = MOST_WAITING if self.seen_forward else MOST_WITHOUT_FORWARDS
        while len(self.waiting) > 1:
            first, earliest = next(iter(self.waiting.items()))
            if not (earliest.is_empty or first in self.first_step or len(self.waiting) > most):
                break
            self._finish(first)

    def entered(self, number: int, step: int, *, named: bool = False) -> None:
        """The tasks of all calls up to `number` have entered a forward, those not told of before that of `step`.
        `named`: it is the call's own forward, whether or not it handed out anything.
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

    def lose(self, tasks_told: bool) -> None:
        """Forwards were lost. `tasks_told`: `tasks_came` will say which tasks come after that."""
        self.known_from = 1 << 62 if tasks_told else max(self.waiting, default=self.known_from - 1) + 1

    def tasks_came(self, number: int) -> None:
        """The tasks of a call have reached the worker, and no forward has begun since."""
        self.known_from = min(self.known_from, number)

    def _finish(self, number: int) -> None:
        self.whole.append((self.waiting.pop(number), self.first_step.pop(number, MISSING)))

    def take(self, *, final: bool) -> list[ColumnArrays]:
        """Columns of the rows that are whole, since the last call; `final`: of all that are left."""
        for number in list(self.waiting) if final else ():
            self._finish(number)
        whole, self.whole = self.whole, []
        return [self._columns(whole)] if whole else []

    def live(self) -> ColumnArrays:
        """Columns of the newest rows that are not whole yet."""
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
        """All that going on needs, as JSON; call it after `take`."""
        return {
            "num_calls": self.num_calls, "known_from": self.known_from, "seen_forward": self.seen_forward,
            "waiting": [[*call, self.first_step.get(number, MISSING)] for number, call in self.waiting.items()],
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.num_calls, self.known_from = state["num_calls"], state["known_from"]
        self.seen_forward = state["seen_forward"]
        for head, figures, step in state["waiting"]:
            call = CallFrame.restored(head, figures)
            self.waiting[call.head.call] = call
            if step >= 0:
                self.first_step[call.head.call] = step
