"""The other instance of a deployment in roles, as a replay simulates it: when requests join, when caches are sent."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from typing import Final

from fdtrace.replayer.model.events import PREALLOCATE, Discarded, Finished, Forward, Joined
from fdtrace.replayer.replay.any_scheduler import AnyScheduler
from fdtrace.replayer.workload.workload import Workload, WorkRequest

Due = list[tuple[float, int, str]]
"""A heap of when, rank and request."""


@dataclass(slots=True)
class HandoverChanges:
    """What happened between two calls: requests that got slots and blocks, that joined, that were discarded."""

    preallocated: list[str] = field(default_factory=list)
    joined: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)

    @property
    def moved(self) -> bool:
        """Whether anything happened."""
        return bool(self.preallocated or self.joined or self.discarded)


NOTHING: Final = HandoverChanges()
"""What is handed over in the mixed role."""


class OtherInstance:
    """Asks for blocks before each call, and reports to the scheduler what the other instance did.

    Times are on the clock of the caller. A request joins (or is discarded) `join_after` the time at which it got its
    blocks. In the prefill role it is done `send_after` the forward of its last chunk.
    """

    def __init__(self, scheduler: AnyScheduler, workload: Workload) -> None:
        self.scheduler = scheduler
        self.role = workload.config.role
        self._requests: dict[str, WorkRequest] = {}
        if self.role != "mixed":
            self._requests = {request.request_id: request for request in workload.requests}
        self._joins: Due = []
        self._sends: Due = []
        self._rank = 0

    def _plan(self, due: Due, when: float, request_id: str) -> None:
        heapq.heappush(due, (when, self._rank, request_id))
        self._rank += 1

    @staticmethod
    def _take(due: Due, now: float) -> list[str]:
        request_ids = []
        while due and due[0][0] <= now:
            request_ids.append(heapq.heappop(due)[2])
        return request_ids

    @property
    def next_due(self) -> float | None:
        """When the next request joins or is sent; None: none is on its way."""
        return min((due[0][0] for due in (self._joins, self._sends) if due), default=None)

    def before_call(self, now: float) -> HandoverChanges:
        """Ask for the blocks of requests that arrived; requests that are due join."""
        if self.role == "mixed":
            return NOTHING
        handed = HandoverChanges()
        handed.preallocated = self.scheduler.apply(PREALLOCATE)
        for request_id in handed.preallocated:
            self._plan(self._joins, now + self._requests[request_id].join_after, request_id)
        for request_id in self._take(self._joins, now):
            if self._requests[request_id].discarded:
                self.scheduler.apply(Discarded(request_id))
                handed.discarded.append(request_id)
            else:
                self.scheduler.apply(Joined(request_id))
                handed.joined.append(request_id)
        return handed

    def sending(self, request_id: str, now: float) -> None:
        """A request has its first token: its cache is on its way to the decode instance."""
        self._plan(self._sends, now + self._requests[request_id].send_after, request_id)

    def after_forward(self, now: float, forward: Forward) -> None:
        """In the prefill role: requests whose cache is sent are finished; they are added to the forward's finished."""
        if self.role != "prefill":
            return
        for request_id in forward.started:
            self.sending(request_id, now)
        for request_id in self._take(self._sends, now):
            self.scheduler.apply(Finished(request_id))
            forward.finished.append(request_id)
