"""The memory of further ranks, put to the steps of rank 0.

All ranks of an engine get the same tasks and run the same forwards, so a forward is named by the last call whose tasks
had come and by how many forwards of this rank came after it.
"""

from __future__ import annotations

from typing import Any

from fdtrace.recorder.trace.column_values import MISSING

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.frames import ForwardFrame, MemoryFrame

MOST = 8192
"""Forwards and measurements remembered while the other half has not come."""


class Ranks:
    """The forwards of rank 0 by call, and measurements that wait for theirs."""

    def __init__(self) -> None:
        self.call, self.since = MISSING, MISSING
        self.steps: dict[tuple[int, int], int] = {}
        self.waiting: list[list[int]] = []
        self.firsts: dict[int, MemoryFrame] = {}

    def tasks_came(self, call: int) -> None:
        """The tasks of a call have reached rank 0."""
        self.call, self.since = call, MISSING

    def lose(self) -> None:
        """Forwards of rank 0 were lost: none can be counted before the next call."""
        self.call = MISSING

    def ran(self, step: int) -> None:
        """Rank 0 ran a forward; `step` MISSING: it is no part of the recording."""
        if self.call < 0:
            return
        self.since += 1
        self.steps[self.call, self.since] = step
        if len(self.steps) > MOST:
            del self.steps[next(iter(self.steps))]

    def add(self, frame: MemoryFrame) -> None:
        """The allocator of a rank after one of its forwards."""
        head = frame.head
        self.waiting.append([head.call, head.since, head.rank, *frame.memory])

    def ran_first(self, frame: MemoryFrame) -> None:
        """What rank 0 measured of the one forward of a call, where the scheduling process tells of the forwards."""
        if frame.head.since == 0:
            self.firsts[frame.head.call] = frame
            if len(self.firsts) > MOST:
                del self.firsts[next(iter(self.firsts))]

    def measured(self, forward: ForwardFrame) -> ForwardFrame:
        """A forward that its own ring could not time, with what rank 0 measured of it."""
        if forward.head.call not in self.firsts:
            return forward._replace(head=forward.head._replace(forward_us=MISSING))
        measured, memory = self.firsts.pop(forward.head.call)
        head = forward.head._replace(
            ts=measured.ts,
            forward_us=measured.forward_us,
            num_predicted_tokens=measured.num_predicted_tokens,
        )
        return forward._replace(head=head, memory=memory)

    def take(self, engine_id: int, final: bool) -> list[tuple[int, ...]]:
        """Rows of `rank_memory` whose step is known; `final`: the others are given up."""
        rows, waiting = [], []
        for measured in self.waiting:
            call, since, *rank_and_memory = measured
            step = self.steps.get((call, since))
            if step is None:
                waiting.append(measured)
            elif step >= 0:
                rows.append((engine_id, step, *rank_and_memory))
        self.waiting = [] if final else waiting[-MOST:]
        return rows

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "call": self.call, "since": self.since, "waiting": self.waiting,
            "steps": [[*forward, step] for forward, step in self.steps.items()],
            "firsts": list(self.firsts.values()),
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.call, self.since, self.waiting = state["call"], state["since"], state["waiting"]
        self.steps = {(call, since): step for call, since, step in state["steps"]}
        for head, memory in state["firsts"]:
            self.ran_first(MemoryFrame(wire.MemoryHead._make(head), wire.AllocatorFigures._make(memory)))
