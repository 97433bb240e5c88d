"""The recorded requests, arrivals and acceptance lengths, scheduled afresh by the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from fdtrace.replayer.config import ORIGINAL, Policy
from fdtrace.replayer.events import (
    FORWARDED,
    SCHEDULE,
    Aborted,
    Cached,
    Decision,
    Forward,
    Recycled,
    Rescheduled,
)
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.handover import Handover
from fdtrace.replayer.hang import HangWatch
from fdtrace.replayer.history import Cut, Hang
from fdtrace.replayer.interface import AnyScheduler, scheduler_by
from fdtrace.replayer.row_tape import RowTape
from fdtrace.replayer.state import SchedulerFailed
from fdtrace.replayer.tape import Tape
from fdtrace.replayer.workload import Workload, WorkRequest

Progressed = Callable[[int, int], None]
"""Called now and then with the steps done and those expected."""
Cancelled = Callable[[], bool]

PROGRESS_EVERY = 2000
"""Steps between two looks at progress and cancellation."""


MOST_IDLE_CALLS = 10_000
"""Calls in a row that decide something and run nothing, before that counts as a hang."""


class ReplayCancelled(Exception):
    """The caller asked to stop."""


class Replay:
    """One run of a workload. Steps are the forwards that ran tokens, as in a recording.

    Requests arrive before the step that they arrived before in the recording; where the workload's clock goes
    by time, once the durations of the replayed steps have come up to when they arrived. Calls that run nothing take no
    step; where such calls change nothing, the replay goes on to the next arrival or abort, and where none is
    left, it hangs. Requests that the recording saw to no end (`targets`) go on with their last acceptance
    until everything else is done and they have made what they had made in the recording.
    """

    order: Literal["lockstep"] = "lockstep"

    def __init__(
        self,
        workload: Workload,
        by: Formula | AnyScheduler,
        policy: Policy = ORIGINAL,
        *,
        explain: bool = False,
        min_steps: int = 0,
    ) -> None:
        self.workload = workload
        self.scheduler = scheduler_by(workload.config, by, policy, explain=explain)
        self.tape: Tape | RowTape = (RowTape if self.scheduler.tells_rows else Tape)(self.scheduler, workload)
        self.min_steps = min_steps
        self._handover = Handover(self.scheduler, workload)
        self._watch = HangWatch(self.scheduler)
        self._limit = workload.config.max_num_batched_tokens
        self.hang: Hang | None = None
        self.cut: Cut | None = None
        self._clock = 0.0
        """Steps so far, or microseconds where requests arrive by time."""
        self._durations = workload.clock.durations
        self._idle_calls = 0
        self._next = 0
        self._to_finish = sum(1 for request in workload.requests if request.target is None)
        self._targets = {r.request_id: r.target for r in workload.requests if r.target is not None}
        self._abort_plan = sorted(
            (request.arrival + request.abort_after, request.request_id)
            for request in workload.requests
            if request.abort_after is not None
        )
        self._next_abort = 0
        self._begun = not workload.cached

    def run(self, progressed: Progressed | None = None, cancelled: Cancelled | None = None) -> None:
        """Run to the end, to a hang, or to the workload's step limit; ReplayCancelled when asked to stop."""
        looked = -1
        while not self._done():
            if not self.advance():
                return
            steps = self.tape.num_steps
            if steps % PROGRESS_EVERY == 0 and steps != looked:
                looked = steps
                if cancelled is not None and cancelled():
                    raise ReplayCancelled
                if progressed is not None:
                    progressed(steps, self.workload.expected_steps)

    def _done(self) -> bool:
        if self._to_finish > 0 or self._next < len(self.workload.requests):
            return False
        scheduler = self.scheduler
        if scheduler.idle:
            return True
        if self.tape.num_steps < self.min_steps:
            return False
        for request_id, target in list(self._targets.items()):
            if request_id in scheduler and scheduler.num_output_tokens_of(request_id) < (target or 0):
                return False
            del self._targets[request_id]
        return True

    def advance(self) -> bool:
        """One call and its forward; False where the replay ends in a hang."""
        if not self._begun:
            self._begin()
        outside = self._arrive()
        scheduler = self.scheduler
        if scheduler.idle and self._next < len(self.workload.requests):
            self._clock = max(self._clock, self.workload.requests[self._next].arrival)
            outside = self._arrive()
        try:
            handed = self._handover.before_call(self._clock)
            decision = scheduler.apply(SCHEDULE)
        except SchedulerFailed as failure:
            self.hang = Hang(self._number(), f"the scheduler fails: {failure}")
            return False
        held_back = scheduler.num_held_back(decision)
        forward = scheduler.apply(FORWARDED)
        self._settle(decision, forward)
        self._to_finish -= len(handed.discarded)
        number = self._number()
        refused = max(0, min(held_back, self._limit - forward.num_tokens)) if held_back else 0
        counted = self.tape.record(decision, forward, refused)
        self.after_call(decision, forward, counted)
        if counted:
            self._clock += 1 if self._durations is None else self._duration(forward)
        hopeless = self._watch.after_call(number, decision, forward, moved=handed.moved, outside=outside)
        return self._goes_on(decision, forward, hopeless)

    def _settle(self, decision: Decision, forward: Forward) -> None:
        """What follows a forward: preempted requests wait again, aborted ones are forgotten."""
        scheduler = self.scheduler
        gone = [*decision.aborted, *(request_id for request_id, _ in decision.errors)]
        if scheduler.config.role == "decode":
            gone += decision.preempted
        else:
            for request_id in decision.preempted:
                scheduler.apply(Rescheduled(request_id))
        for request_id in decision.aborted:
            scheduler.apply(Recycled(request_id))
        self._handover.after_forward(self._clock, forward)
        gone += forward.finished
        self._to_finish -= sum(1 for request_id in gone if request_id not in self._targets)

    def after_call(self, decision: Decision, forward: Forward, counted: bool) -> None:
        """Called after each call and its forward, for those who watch."""

    def _duration(self, forward: Forward) -> float:
        assert self._durations is not None
        return self._durations.of(forward.num_prefill_tokens, forward.num_decode_tokens)

    def _arrive(self) -> bool:
        """Hand over what is due by now; whether there was anything."""
        requests, before = self.workload.requests, self._next + self._next_abort
        while self._next < len(requests) and requests[self._next].arrival <= self._clock:
            self._enter(requests[self._next])
            self._next += 1
        while (
            self._next_abort < len(self._abort_plan) and self._abort_plan[self._next_abort][0] <= self._clock
        ):
            request_id = self._abort_plan[self._next_abort][1]
            self._next_abort += 1
            if request_id in self.scheduler:
                self.scheduler.apply(Aborted(request_id))
        return self._next + self._next_abort > before

    def _begin(self) -> None:
        """What was there before the first request."""
        for blocks in self.workload.cached:
            self.scheduler.apply(Cached(blocks))
        self._begun = True

    def _enter(self, request: WorkRequest) -> None:
        self.scheduler.apply(request.resumed or request.arrived())
        if request.resumed is None or not request.resumed.decoding:
            return
        if self._handover.role == "prefill":
            self._handover.sending(request.request_id, self._clock)
        else:
            self.tape.resumed(request.request_id)

    @property
    def num_unfinished(self) -> int:
        """Requests that are not done: still there, or not arrived yet."""
        return self.scheduler.num_requests + len(self.workload.requests) - self._next

    def _number(self) -> int:
        return self.workload.first_step + self.tape.num_steps

    def _goes_on(self, decision: Decision, forward: Forward, hopeless: bool) -> bool:
        """Whether there is a next call; `hopeless`: only something from outside can bring progress."""
        if self.tape.num_steps >= self.workload.max_steps and not self._done():
            to_come = len(self.workload.requests) - self._next
            self.cut = Cut(self._number(), self.workload.max_steps, self.scheduler.num_requests, to_come)
            return False
        self._idle_calls = 0 if forward.num_tokens else self._idle_calls + 1
        if self._idle_calls > MOST_IDLE_CALLS:
            self.hang = Hang(
                self._number(), f"{self._idle_calls} calls in a row preempt, and no forward runs"
            )
            return False
        if not hopeless or self.scheduler.idle:
            return True
        coming: list[float] = [
            request.arrival for request in self.workload.requests[self._next : self._next + 1]
        ]
        coming += [step for step, _ in self._abort_plan[self._next_abort : self._next_abort + 1]]
        if (due := self._handover.next_due) is not None:
            coming.append(due)
        if coming:
            if not forward.num_tokens:
                self._clock = max(self._clock, min(coming))
            return True
        self.hang = self._watch.hang(decision, forward)
        return False
