"""Schedules the recorded requests, with their arrivals and acceptance lengths, again by the model."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.replayer.config import ORIGINAL, Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.history.history import Hang, StepLimitReached
from fdtrace.replayer.model.events import (
    Decision,
    Forward,
    StepRow,
)
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.model.state import SchedulerFailed
from fdtrace.replayer.replay.any_scheduler import AnyScheduler, scheduler_by
from fdtrace.replayer.replay.other_instance import HandoverChanges
from fdtrace.replayer.replay.row_log import RowLog
from fdtrace.replayer.replay.step_log import StepLog
from fdtrace.replayer.replay.stepper import Stepper
from fdtrace.replayer.replay.summed_log import SummedLog
from fdtrace.replayer.replay.timed_steps import StepTimes, TimedSteps
from fdtrace.replayer.workload.request_columns import requests_with
from fdtrace.replayer.workload.workload import Workload, WorkRequest

Progressed = Callable[[int, int], None]
"""Called now and then with the steps done and those expected."""
Cancelled = Callable[[], bool]

PROGRESS_EVERY = 2000
"""Steps between two looks at progress and cancellation."""


MOST_IDLE_CALLS = 10_000
"""Calls in a row may decide something and run nothing so many times; more count as a hang."""


class ReplayCancelled(Exception):
    """The caller asked to stop."""


class Replay:
    """One run of a workload. Steps are the forwards that ran tokens, as in a recording.

    A request arrives before the same step as in the recording. If the workload's clock goes by time, it arrives when
    the replayed steps have taken as long as the recorded steps had taken at its arrival. A call whose forward runs
    nothing is no step. If no call can bring progress, the replay goes on to the next arrival or abort; if there is
    none, it hangs. Requests that did not end in the recording (those with a `target`) go on with their last acceptance
    until all others are done and they have as much output as in the recording.
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
        sums: bool = True,
    ) -> None:
        """`explain`: the model's decisions carry their reasons. `min_steps`: it does not end before so many steps.
        `sums`: where the model schedules by time, a step's batch is summed up as it changes; without, from its rows.
        """
        self.workload = workload
        self.scheduler = scheduler_by(workload.config, by, policy, explain=explain)
        model = workload.clock.model
        sums = sums and model is not None and workload.config.role == "mixed"
        self.log: StepLog | RowLog
        if sums and isinstance(self.scheduler, Scheduler):
            self.log = SummedLog(self.scheduler, workload)
        else:
            self.log = (RowLog if self.scheduler.keeps_rows else StepLog)(self.scheduler, workload)
        self.min_steps = min_steps
        self.hang: Hang | None = None
        self.cut: StepLimitReached | None = None
        self._stepper = Stepper(workload, self.scheduler)
        self._limit = workload.config.max_num_batched_tokens
        self._clock = 0.0
        """Steps so far; microseconds if requests arrive by time."""
        self._durations = workload.clock.durations
        self._counts_empty_calls = workload.clock.counts_empty_calls
        self.timed: StepTimes | None = None
        if model is not None:
            self.timed = StepTimes(model) if isinstance(self.log, SummedLog) else TimedSteps(model, workload)
        """By time, with a time model: when each step began and ended."""
        self.arrived_before = array("i")
        """The entry of the step before which each request came, by entry in the workload, as far as they have come."""
        self.ended_in = array("i", [MISSING]) * len(workload.requests)
        """The entry of the step in which each request ended; MISSING: it has not."""
        self.handed: list[tuple[int, HandoverChanges]] = []
        """What the other instance of a deployment in roles did, with the entry of the step that followed."""
        self.watcher: Callable[[Decision, Forward], None] | None = None
        """Called after each call and its forward."""
        self._idle_calls = 0
        self._targets = {r.request_id: r.target for _, r in requests_with(workload.requests, "target")}
        self._to_finish = len(workload.requests) - len(self._targets)

    def take(self, request: WorkRequest) -> None:
        """Add a request, which arrives no earlier than all others. A router sends requests to a rank in this way. Only
        without `sums`.
        """
        self._stepper.take(request)
        self.ended_in.append(MISSING)
        if isinstance(self.timed, TimedSteps):
            self.timed.know(request.request_id)
        if request.target is None:
            self._to_finish += 1
        else:
            self._targets[request.request_id] = request.target
        self.hang = None if self._stepper.hopeless else self.hang

    def settle(self) -> None:
        """Let the workload have all requests that `take` added: its log is then read by them."""
        self.workload = replace(self.workload, requests=tuple(self._stepper.requests))
        self.log.workload = self.workload

    def run(self, progressed: Progressed | None = None, cancelled: Cancelled | None = None) -> None:
        """Run to the end, to a hang, or to the workload's step limit; ReplayCancelled when asked to stop."""
        last_report = -1
        while not self.is_done():
            if not self.advance():
                return
            steps = self.log.num_steps
            if steps % PROGRESS_EVERY == 0 and steps != last_report:
                last_report = steps
                if cancelled is not None and cancelled():
                    raise ReplayCancelled
                if progressed is not None:
                    progressed(steps, self.workload.expected_steps)

    def is_done(self) -> bool:
        """Whether all requests that ended in the recording have ended, and the others are as far as they came there."""
        if self._to_finish > 0 or self._stepper.num_to_come:
            return False
        scheduler = self.scheduler
        if scheduler.idle:
            return True
        if self.log.num_steps < self.min_steps:
            return False
        for request_id, target in list(self._targets.items()):
            if request_id in scheduler and scheduler.num_output_tokens_of(request_id) < (target or 0):
                return False
            del self._targets[request_id]
        return True

    def advance(self) -> bool:
        """Run one call and its forward; False if the replay hangs or is cut."""
        stepper, scheduler = self._stepper, self.scheduler
        self.arrive()
        if scheduler.idle and (arrival := stepper.next_arrival) is not None:
            self._clock = max(self._clock, arrival)
            self.arrive()
        try:
            decision = stepper.decide(self._clock)
        except SchedulerFailed as failure:
            self.hang = Hang(self._number(), f"the scheduler fails: {failure}")
            return False
        if stepper.handed.moved:
            self.handed.append((self.log.num_steps, stepper.handed))
        held_back = scheduler.num_held_back(decision)
        rows = scheduler.rows(decision) if isinstance(self.timed, TimedSteps) else ()
        forward = stepper.run(self._clock, self._number(), decision)
        step = self.log.num_steps
        refused = max(0, min(held_back, self._limit - forward.num_tokens)) if held_back else 0
        counted = self.log.record(decision, forward, refused)
        self.after_call(decision, forward)
        if counted:
            self._clock += self._duration(decision, forward, rows)
        elif self._counts_empty_calls:
            self._clock += 1.0
        if stepper.ended:
            self._end(step)
        return self._goes_on(decision, forward)

    def _end(self, step: int) -> None:
        """What ended in the last turn, of which `step` is the entry, leaves."""
        for request_id in self._stepper.ended:
            self.ended_in[self.log.left(request_id)] = step
            if request_id not in self._targets:
                self._to_finish -= 1
        self._stepper.answered(self._clock)

    def after_call(self, decision: Decision, forward: Forward) -> None:
        """Called after each call and its forward, for subclasses."""
        if self.watcher is not None:
            self.watcher(decision, forward)

    def _duration(self, decision: Decision, forward: Forward, rows: Sequence[StepRow]) -> float:
        if isinstance(self.timed, TimedSteps):
            return self.timed.take(self._clock, rows)
        if self.timed is not None and isinstance(self.log, SummedLog):
            return self.timed.add(self._clock, self.log.batch_features(decision, forward))
        if self._durations is None:
            return 1.0
        return self._durations.of(forward.num_prefill_tokens, forward.num_decode_tokens)

    def arrive(self) -> None:
        """Hand over what is due. A request that decoded before the first step goes on decoding."""
        for request in self._stepper.arrive(self._clock):
            self.log.came(request.request_id, len(self.arrived_before))
            self.arrived_before.append(self.log.num_steps)
            resumed = request.resumed
            if resumed is not None and resumed.decoding and self.scheduler.config.role != "prefill":
                self.log.resumed(request.request_id)

    @property
    def arrivals_after_answers(self) -> Mapping[str, float]:
        """When the requests were sent whose clients waited for an answer before, on the clock."""
        return self._stepper.arrivals_after_answers

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended, or not arrived yet."""
        return self.scheduler.num_requests + self._stepper.num_to_come

    def _number(self) -> int:
        return self.workload.first_step + self.log.num_steps

    def _goes_on(self, decision: Decision, forward: Forward) -> bool:
        """Whether there is a next call."""
        if self.log.num_steps >= self.workload.max_steps and not self.is_done():
            to_come = self._stepper.num_to_come
            self.cut = StepLimitReached(
                self._number(), self.workload.max_steps, self.scheduler.num_requests, to_come
            )
            return False
        self._idle_calls = 0 if forward.num_tokens or self._counts_empty_calls else self._idle_calls + 1
        if self._idle_calls > MOST_IDLE_CALLS:
            self.hang = Hang(
                self._number(), f"{self._idle_calls} calls in a row preempt, and no forward runs"
            )
            return False
        if not self._stepper.hopeless or self.scheduler.idle:
            return True
        if (next_event := self._stepper.next_event) is not None:
            if not (forward.num_tokens or self._counts_empty_calls):
                self._clock = max(self._clock, next_event)
            return True
        self.hang = self._stepper.watch.hang(decision, forward)
        return False
