"""Frames as they are read: what `recorder.agent.wire` lays out, put together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from fdtrace.recorder.agent import wire
from fdtrace.recorder.collector.ledger import Request


class SchedulingCall(NamedTuple):
    """A scheduling call as its frame says it."""

    head: wire.ScheduleHead
    figures: wire.CallFigures

    @classmethod
    def read(cls, data: bytes, at: int) -> SchedulingCall:
        """The call of the SCHEDULE frame that begins at `at`."""
        return cls(wire.SCHEDULE_HEAD.read(data, at), wire.FIGURES.read(data, at + wire.SCHEDULE_HEAD.size))

    @classmethod
    def restored(cls, head: Sequence[int], figures: Sequence[int]) -> SchedulingCall:
        """The call of which these were the fields."""
        return cls(wire.ScheduleHead._make(head), wire.CallFigures._make(figures))

    @property
    def is_empty(self) -> bool:
        """Whether it handed out no task."""
        return bool(self.head.flags & wire.EMPTY)

    @property
    def ended_at(self) -> int:
        """When it ended, UTC ns; of a run of equal ones, the first."""
        return self.head.ts + 1000 * self.head.schedule_us


UNSEEN = SchedulingCall(
    wire.ScheduleHead(wire.SCHEDULE, 0, 0, -1, call=-1, ts=-1, last_ts=-1, num_calls=1), wire.CallFigures()
)
"""What is known of a scheduling call that was not seen: nothing."""


class Forward(NamedTuple):
    """A forward as its frame says it: the head, the allocator after it, and the call that it belongs to."""

    head: wire.ForwardHead
    memory: wire.AllocatorFigures
    call: SchedulingCall = UNSEEN

    @classmethod
    def read(cls, data: bytes, at: int) -> Forward:
        """The forward of the FORWARD frame that begins at `at`; its call is not known by that alone."""
        return cls(wire.FORWARD_HEAD.read(data, at), wire.ALLOCATOR.read(data, at + wire.FORWARD_HEAD.size))

    def at_step(self, step: int) -> Forward:
        """The same as step `step` of the trace."""
        return self._replace(head=self.head._replace(step=step))


def text_at(data: bytes, begin: int, length: int) -> str:
    """A text of a frame: an id, a reason, JSON."""
    return data[begin : begin + length].decode()


def request_of(head: wire.RequestHead | wire.JoinedHead, request_id: str) -> Request:
    """What a frame says of a request."""
    names = Request.__dataclass_fields__
    known = {name: value for name, value in head._asdict().items() if name in names}
    return Request(request_id, **known)


def read_event(data: bytes, at: int) -> tuple[wire.EventHead, str, str, str | None]:
    """An event's head, its name, its reason and its detail (JSON)."""
    head = wire.EVENT_HEAD.read(data, at)
    begin = at + wire.EVENT_HEAD.size
    reason = text_at(data, begin, head.reason_length)
    detail = text_at(data, begin + head.reason_length, head.detail_length)
    return head, wire.EVENTS[head.event], reason, detail or None
