"""Which scheduling call a forward belongs to, and what of its figures stands in an earlier step."""

from __future__ import annotations

from typing import Any

from fdtrace.recorder.trace.column_values import MISSING

from fdtrace.recorder.collector.frames import UNSEEN, CallFrame

MOST = 200_000
"""Calls kept for forwards that may still come: an engine whose workers are not recorded has none."""


class ForwardCalls:
    """The scheduling calls of one engine that forwards may still belong to."""

    def __init__(self) -> None:
        self.seen: dict[int, CallFrame] = {}
        self.last = MISSING
        self.next_call = 0

    def add(self, call: CallFrame) -> None:
        """A scheduling call, as its frame says."""
        self.seen[call.head.call] = call
        self.next_call = call.head.call + call.head.num_calls
        if len(self.seen) > MOST:
            del self.seen[next(iter(self.seen))]

    def of_forward(self, last_landed: int, ts: int, resolve: bool) -> CallFrame:
        """The call that a forward begun at `ts` belongs to, with what is not in an earlier step yet.

        What a call did once (its time, the tokens it handed out, its preemptions) stands with its first forward alone.
        `last_landed`: the last call whose tasks had reached the worker; `resolve`: a later empty one may be it.
        """
        number = max(last_landed, self.last) if resolve else last_landed
        while resolve and self._is_empty_before(self._following(number), ts):
            number = self._following(number)
        call = self.seen.get(number)
        if call is None:
            return UNSEEN._replace(head=UNSEEN.head._replace(call=number))
        head, figures = call.head, call.figures
        if number == self.last:
            head = head._replace(schedule_us=MISSING)
            figures = figures._replace(num_scheduled_tokens=MISSING, num_preempted=0)
        else:
            between = (self.seen.get(n) for n in range(self.last + 1, number + 1))
            preempted = sum(known.figures.num_preempted for known in between if known is not None)
            figures = figures._replace(num_preempted=preempted)
        for earlier in [earlier for earlier in self.seen if earlier < number]:
            del self.seen[earlier]
        self.last = number
        return CallFrame(head, figures)

    def _following(self, number: int) -> int:
        call = self.seen.get(number)
        return number + (1 if call is None else call.head.num_calls)

    def _is_empty_before(self, number: int, ts: int) -> bool:
        call = self.seen.get(number)
        return call is not None and call.is_empty and call.ended_at <= ts

    def state(self) -> dict[str, Any]:
        """As JSON."""
        seen = [[call.head, call.figures] for call in self.seen.values()]
        return {"seen": seen, "last": self.last, "next_call": self.next_call}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        calls = [CallFrame.restored(*saved) for saved in state["seen"]]
        self.seen = {call.head.call: call for call in calls}
        self.last, self.next_call = state["last"], state["next_call"]
