"""One loop of a workload: what comes from outside, a call, its forward, and what follows them."""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Sequence

from fdtrace.replayer.model.events import (
    FORWARDED,
    SCHEDULE,
    Aborted,
    Cached,
    Decision,
    Forward,
    Recycled,
    Rescheduled,
)
from fdtrace.replayer.replay.any_scheduler import AnyScheduler
from fdtrace.replayer.replay.hang import HangWatch
from fdtrace.replayer.replay.other_instance import NOTHING, Handover
from fdtrace.replayer.workload.workload import Workload, WorkRequest


class Stepper:
    """Takes a workload through a scheduler, a turn at a time, on a clock that whoever drives it keeps:

        stepper.arrive(now)                       hand over the requests and aborts that are due
        decision = stepper.decide(now)            ask for blocks, let requests join, call the scheduler
        forward = stepper.run(now, step, decision)    run the forward, and all that follows it

    Between the last two, the scheduler can be asked about the forward to come. The order is that of the lab's README,
    "A step".
    """

    def __init__(self, workload: Workload, scheduler: AnyScheduler) -> None:
        self.workload, self.scheduler = workload, scheduler
        self.watch = HangWatch(scheduler)
        self.hopeless = False
        """Whether, after the last turn, only something from outside can bring a request further."""
        self.handed = NOTHING
        """What the other instance of a deployment in roles did before the last call."""
        self.ended: list[str] = []
        """Requests that ended in the last turn: finished, aborted, failed, or discarded."""
        self._handover = Handover(scheduler, workload)
        self._next = self._next_abort = 0
        self._aborts: list[tuple[float, str]] = sorted(
            (request.arrival + request.abort_after, request.request_id)
            for request in workload.requests
            if request.abort_after is not None and request.think is None
        )
        self._answers: deque[float] = deque()
        """Since when clients that have got an answer are free to come again, the first first."""
        self.came: dict[str, float] = {}
        """When those came that wait for an answer."""
        self._outside = False
        self._begun = not workload.cached

    @property
    def num_to_come(self) -> int:
        """Requests that have not arrived."""
        return len(self.workload.requests) - self._next

    @property
    def next_arrival(self) -> float | None:
        """When the next request arrives; None: all have, or it waits for an answer to another."""
        return self._arrival_of(self.workload.requests[self._next]) if self.num_to_come else None

    def _arrival_of(self, request: WorkRequest) -> float | None:
        if request.think is None:
            return request.arrival
        return self._answers[0] + request.think if self._answers else None

    def answered(self, now: float) -> None:
        """The answers to what ended in the last turn have reached their clients."""
        self._answers.extend([now] * len(self.ended))

    @property
    def next_event(self) -> float | None:
        """When something comes from outside next: an arrival, an abort, one that joins or is sent; None: never."""
        moments: list[float] = [at for at, _ in self._aborts[self._next_abort : self._next_abort + 1]]
        moments += [at for at in (self.next_arrival, self._handover.next_due) if at is not None]
        return min(moments, default=None)

    def arrive(self, now: float) -> Sequence[WorkRequest]:
        """Hand over what is due by `now`; gives the requests that came."""
        if not self._begun:
            for blocks in self.workload.cached:
                self.scheduler.apply(Cached(blocks))
            self._begun = True
        requests, first = self.workload.requests, self._next
        while (arrival := self.next_arrival) is not None and arrival <= now:
            self._enter(requests[self._next], now)
            self._next += 1
        self._outside = self._outside or self._next > first
        while self._next_abort < len(self._aborts) and self._aborts[self._next_abort][0] <= now:
            request_id = self._aborts[self._next_abort][1]
            self._next_abort += 1
            if request_id in self.scheduler:
                self.scheduler.apply(Aborted(request_id))
                self._outside = True
        return requests[first : self._next]

    def _enter(self, request: WorkRequest, now: float) -> None:
        self.scheduler.apply(request.resumed or request.arrived())
        if request.think is not None:
            self.came[request.request_id] = self._answers.popleft() + request.think
            if request.abort_after is not None:
                insort(self._aborts, (now + request.abort_after, request.request_id))
        if request.resumed is not None and request.resumed.decoding and self._handover.role == "prefill":
            self._handover.sending(request.request_id, now)

    def decide(self, now: float) -> Decision:
        """Call the scheduler. SchedulerFailed where FastDeploy's would raise."""
        self.handed = self._handover.before_call(now)
        return self.scheduler.apply(SCHEDULE)

    def run(self, now: float, step: int, decision: Decision) -> Forward:
        """Run the forward of a call: finished requests go, preempted ones wait again, aborted ones are forgotten.

        Args:
            now: the time on the clock.
            step: number of the step, as a hang is dated by.
            decision: that of the call.
        """
        forward = self.scheduler.apply(FORWARDED)
        self.ended = []
        if decision.preempted or decision.aborted or decision.errors or self.handed is not NOTHING:
            self._settle(now, decision, forward)
        if forward.finished:
            self.ended += forward.finished
        if forward.num_decodes and self.watch.has_gained:  # as most calls
            self.hopeless = False
        else:
            moved, outside = self.handed.moved, self._outside
            self.hopeless = self.watch.after_call(step, decision, forward, moved=moved, outside=outside)
        self._outside = False
        return forward

    def _settle(self, now: float, decision: Decision, forward: Forward) -> None:
        """What follows a forward, beside what it finished."""
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
