"""Finds the scheduling call of each forward. If several forwards share a call, only the first gets what the call did
once: its duration, its tokens, its preemptions.
"""

from __future__ import annotations

from typing import Any

from fdtrace.recorder.collector.frames import UNSEEN, CallFrame
from fdtrace.recorder.trace.column_values import MISSING

MOST = 200_000
"""Most calls kept for forwards that may still come. If an engine's workers are not recorded, no forward comes."""


class ForwardCalls:
    """The scheduling calls of one engine to which later forwards may belong."""

    def __init__(self) -> None:
        self.calls: dict[int, CallFrame] = {}
        self.last = MISSING
        self.next_call = 0

    def add(self, call: CallFrame) -> None:
        """Add a scheduling call."""
        self.calls[call.head.call] = call
        self.next_call = call.head.call + call.head.num_calls
        if len(self.calls) > MOST:
            del self.calls[next(iter(self.calls))]

    def of_forward(self, last_landed: int, ts: int, resolve: bool) -> CallFrame:
        """The call of a forward that began at `ts`, without the figures that an earlier step already has.

        What a call did once (its time, the tokens that it handed out, its preemptions) is only in its first forward.

        `last_landed`: the last call whose tasks had reached the worker. `resolve`: a later call that handed out nothing
        may be the forward's call.
        """
        number = max(last_landed, self.last) if resolve else last_landed
        while resolve and self._is_empty_before(self._following(number), ts):
            number = self._following(number)
        call = self.calls.get(number)
        if call is None:
            return UNSEEN._replace(head=UNSEEN.head._replace(call=number))
        head, figures = call.head, call.figures
        if number == self.last:
            head = head._replace(schedule_us=MISSING)
            figures = figures._replace(num_scheduled_tokens=MISSING, num_preempted=0)
        else:
            earlier_calls = (self.calls.get(n) for n in range(self.last + 1, number + 1))
            preempted = sum(earlier.figures.num_preempted for earlier in earlier_calls if earlier is not None)
            figures = figures._replace(num_preempted=preempted)
        for earlier in [earlier for earlier in self.calls if earlier < number]:
            del self.calls[earlier]
        self.last = number
        return CallFrame(head, figures)

    def _following(self, number: int) -> int:
        call = self.calls.get(number)
        return number + (1 if call is None else call.head.num_calls)

    def _is_empty_before(self, number: int, ts: int) -> bool:
        call = self.calls.get(number)
        return call is not None and call.is_empty and call.ended_at <= ts

    def state(self) -> dict[str, Any]:
        """The state as JSON."""
        calls = [[call.head, call.figures] for call in self.calls.values()]
        return {"seen": calls, "last": self.last, "next_call": self.next_call}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state`."""
        calls = [CallFrame.restored(*saved) for saved in state["seen"]]
        self.calls = {call.head.call: call for call in calls}
        self.last, self.next_call = state["last"], state["next_call"]
