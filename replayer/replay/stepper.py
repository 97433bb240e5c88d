"""One turn of a workload's loop: what comes from outside, a call, its forward, and what follows."""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Sequence
from typing import Final

from fdtrace.replayer.model.events import (
    FORWARDED,
    SCHEDULE,
    Aborted,
    Decision,
    Forward,
    Recycled,
    Rescheduled,
)
from fdtrace.replayer.model.found_events import AdmissionBlocked, Cached
from fdtrace.replayer.replay.any_scheduler import AnyScheduler
from fdtrace.replayer.replay.hang import HangWatch
from fdtrace.replayer.replay.other_instance import NOTHING, OtherInstance
from fdtrace.replayer.workload.request_columns import requests_with
from fdtrace.replayer.workload.workload import Workload, WorkRequest

NEVER: Final = math.inf


class Stepper:
    """Runs a workload through a scheduler, one turn at a time. The caller keeps the clock:

        stepper.arrive(now)                       hand over the requests and aborts that are due
        decision = stepper.decide(now)            ask for blocks, let requests join, call the scheduler
        forward = stepper.run(now, step, decision)    run the forward, and everything that follows it

    Between the last two, the scheduler can be asked about the next forward. The order is that of the lab's README,
    "A step".
    """

    def __init__(self, workload: Workload, scheduler: AnyScheduler) -> None:
        self.workload, self.scheduler = workload, scheduler
        self.requests: Sequence[WorkRequest] = workload.requests
        """Those of the workload, and those that `take` added; in order of arrival."""
        self.watch = HangWatch(scheduler)
        self.hopeless = False
        """Whether, after the last turn, only something from outside can bring a request further."""
        self.handed = NOTHING
        """What the other instance of a deployment in roles did before the last call."""
        self.ended: list[str] = []
        """Requests that ended in the last turn: finished, aborted, failed, or discarded."""
        self._handover = OtherInstance(scheduler, workload)
        self._next = self._next_abort = 0
        self._num_requests = len(self.requests)
        self._iterator, self._taken = iter(self.requests), deque[WorkRequest]()
        self._coming: WorkRequest | None = None
        """The next request to arrive; behind it come those of the iterator, then those that were taken."""
        self._due = NEVER
        """When it arrives; NEVER: there is none, or its client waits for an answer."""
        self._aborts: list[tuple[float, str]] = sorted(
            (request.arrival + request.abort_after, request.request_id)
            for _, request in requests_with(workload.requests, "abort_after")
            if request.abort_after is not None and request.think is None
        )
        self._some_wait = next(requests_with(self.requests, "think"), None) is not None
        """Whether there are clients that send a request when they have got an answer."""
        self._answers: deque[float] = deque()
        """When clients got their answers that have not sent a request since, earliest first."""
        self.arrivals_after_answers: dict[str, float] = {}
        """When the requests were sent whose clients waited for an answer before."""
        self._came_from_outside = False
        self._has_begun = False
        self._find_coming()

    @property
    def num_to_come(self) -> int:
        """Requests that have not arrived."""
        return self._num_requests - self._next

    @property
    def next_arrival(self) -> float | None:
        """When the next request arrives; None: all have arrived, or its client still waits for an answer."""
        return None if self._due == NEVER else self._due

    def _find_coming(self) -> None:
        """Find the next request to arrive, unless it is known, and when that is."""
        request = self._coming
        if request is None:
            request = next(self._iterator, None)
            if request is None and self._taken:
                request = self._taken.popleft()
            self._coming = request
        if request is None:
            self._due = NEVER
        elif request.think is None:
            self._due = float(request.arrival)
        elif self._answers:
            self._due = self._answers[0] + request.think + request.on_its_way
        else:
            self._due = NEVER

    def take(self, request: WorkRequest) -> None:
        """Add a request, which arrives no earlier than all others."""
        if not isinstance(self.requests, list):
            self.requests = list(self.requests)
        self.requests.append(request)
        self._taken.append(request)
        self._num_requests += 1
        self._some_wait = self._some_wait or request.think is not None
        self._find_coming()
        if request.abort_after is not None:
            insort(self._aborts, (request.arrival + request.abort_after, request.request_id))

    def answered(self, now: float) -> None:
        """The answers to what ended in the last turn have reached their clients."""
        if self._some_wait:
            self._answers.extend([now] * len(self.ended))
            self._find_coming()

    @property
    def next_event(self) -> float | None:
        """When the next event comes from outside (an arrival, an abort, one that joins or is sent); None: never."""
        moments: list[float] = [at for at, _ in self._aborts[self._next_abort : self._next_abort + 1]]
        moments += [at for at in (self.next_arrival, self._handover.next_due) if at is not None]
        return min(moments, default=None)

    def arrive(self, now: float) -> Sequence[WorkRequest]:
        """Hand over what is due by `now`; returns the requests that arrived."""
        if not self._has_begun:
            self._begin()
        arrived: Sequence[WorkRequest] = ()
        if self._due <= now:
            arrived = self._take_due(now)
        while self._next_abort < len(self._aborts) and self._aborts[self._next_abort][0] <= now:
            request_id = self._aborts[self._next_abort][1]
            self._next_abort += 1
            if request_id in self.scheduler:
                self.scheduler.apply(Aborted(request_id))
                self._came_from_outside = True
        return arrived

    def _take_due(self, now: float) -> list[WorkRequest]:
        """Hand over the requests that are due by `now`."""
        arrived: list[WorkRequest] = []
        while self._due <= now:
            request = self._coming
            assert request is not None
            self._apply_arrival(request, now)
            arrived.append(request)
            self._next += 1
            self._coming = None
            self._find_coming()
        self._came_from_outside = True
        return arrived

    def _begin(self) -> None:
        """Hand over what was there before all requests."""
        self._has_begun = True
        for blocks in self.workload.cached:
            self.scheduler.apply(Cached(blocks))
        if not self.workload.admits_new:
            self.scheduler.apply(AdmissionBlocked())

    def _apply_arrival(self, request: WorkRequest, now: float) -> None:
        self.scheduler.apply(request.resumed or request.arrived())
        if request.think is not None:
            self.arrivals_after_answers[request.request_id] = self._answers.popleft() + request.think
            if request.abort_after is not None:
                insort(self._aborts, (now + request.abort_after, request.request_id))
        if request.resumed is not None and request.resumed.decoding and self._handover.role == "prefill":
            self._handover.sending(request.request_id, now)

    def decide(self, now: float) -> Decision:
        """Call the scheduler. SchedulerFailed if FastDeploy's scheduler would raise."""
        self.handed = self._handover.before_call(now)
        return self.scheduler.apply(SCHEDULE)

    def run(self, now: float, step: int, decision: Decision) -> Forward:
        """Run the forward of a call: finished requests leave, preempted ones wait again, aborted ones are removed.

        Args:
            now: the time on the clock.
            step: number of the step, for the begin of a hang.
            decision: that of the call.
        """
        forward = self.scheduler.apply(FORWARDED)
        self.ended = []
        if decision.preempted or decision.aborted or decision.errors or self.handed is not NOTHING:
            self._settle(now, decision, forward)
        if forward.finished:
            self.ended += forward.finished
        if forward.num_decodes and self.watch.has_gained:  # true for most calls
            self.hopeless = False
        else:
            moved, outside = self.handed.moved, self._came_from_outside
            self.hopeless = self.watch.after_call(step, decision, forward, moved=moved, outside=outside)
        self._came_from_outside = False
        return forward

    def _settle(self, now: float, decision: Decision, forward: Forward) -> None:
        """Everything that follows a forward, except for the requests that it finished."""
        scheduler = self.scheduler
        self.ended += [*self.handed.discarded, *decision.aborted, *(name for name, _ in decision.errors)]
        if scheduler.config.role == "decode":
            self.ended += decision.preempted
        else:
            for request_id in decision.preempted:
                scheduler.apply(Rescheduled(request_id))
        for request_id in decision.aborted:
            scheduler.apply(Recycled(request_id))
        self._handover.after_forward(now, forward)
