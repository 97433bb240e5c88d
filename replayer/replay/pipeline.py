"""Replays a recorded deployment under another formula or policy, through a model of its pipeline.

In a deployment, calls and forwards do not come in pairs. So the decision of a call depends on how far the other parts
are. Three parts wait for each other here as in FastDeploy, with the times of the recording (`PipelineTimes`):

- the worker looks at its queue between two forwards, inserts the tasks that have come, and runs the next forward;
- the token processor takes in outputs, one forward after the other: then their tokens count, and ended requests leave;
- the scheduling loop calls `schedule()` when the worker has taken the tasks of the call before, and rests after a call
  that handed out nothing. While no request waits, it fetches what clients sent.

FastDeploy: `PaddleDisWorkerProc.event_loop_normal` (worker/worker_process.py), `TokenProcessor._process_batch_output`
(output/token_processor.py), `EngineService._schedule_request_to_worker_v1` (engine/common_engine.py).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.replayer.config import Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.history.history import Hang, StepLimitReached
from fdtrace.replayer.model.events import (
    SCHEDULE,
    Aborted,
    Decision,
    Emitted,
    Forward,
    Freed,
    Left,
    OutputCached,
    Recycled,
    Rescheduled,
)
from fdtrace.replayer.model.found_events import LeavingAtStart
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.model.state import SchedulerFailed
from fdtrace.replayer.recorded.pipeline_times import PipelineTimes
from fdtrace.replayer.replay.beginning import PipelineStart
from fdtrace.replayer.replay.fetching import LOOK_INTERVAL_MS, ClientQueue
from fdtrace.replayer.replay.row_log import RowLog
from fdtrace.replayer.replay.token_processor import TokenProcessor
from fdtrace.replayer.replay.worker import TasksInFlight, Worker, tasks_of
from fdtrace.replayer.workload.workload import Workload, WorkRequest

POLL_MS = 1.1
"""Between two looks of a worker that has nothing to run."""
REPORT_EVERY, MOST_IDLE_CALLS = 2000, 1000
"""Events between two reports of steps; calls in a row that may hand out nothing with nothing running (more: a hang)."""


class PipelineReplay:
    """One run of a workload until all requests have ended, or until the recording ended if it ended before them.

    Steps are the forwards that ran tokens."""

    order: Literal["pipeline"] = "pipeline"

    def __init__(
        self,
        workload: Workload,
        times: PipelineTimes,
        beginning: PipelineStart,
        formula: Formula,
        policy: Policy,
        *,
        explain: bool = False,
    ) -> None:
        self.workload, self.times, self.beginning, self.policy = workload, times, beginning, policy
        self.scheduler = Scheduler(workload.config, formula, policy, explain=explain)
        self.requests = {request.request_id: request for request in workload.requests}
        self.worker = Worker(workload.config, self.requests)
        self.log = RowLog(self.worker, workload)
        self.hang: Hang | None = None
        self.cut: StepLimitReached | None = None
        self.ends: list[float] = []
        """When each forward ended."""
        self.first_tokens: dict[str, float] = {}
        """When the forward ended that made a request's first token."""
        self.num_calls = self._num_planned = 0
        self._clients = ClientQueue(workload.config, beginning.sent)
        self._agenda: list[tuple[float, int, Callable[[float], None]]] = []
        self._handed: TasksInFlight | None = None
        self._outputs = TokenProcessor(times)
        self._answers: list[str] = []
        """Preempted and aborted requests that the worker has dropped but not answered for yet."""
        self._fetching = self._sleeping = False
        self._decision, self._seen_step = Decision(0, MISSING, MISSING, MISSING), MISSING
        self._num_preempted = self._num_held_back = self._idle_calls = 0
        self.arrived_before, self.ended_in = dict[str, int](), dict[str, int]()
        self._to_end = len(workload.requests)

    def run(self, report: Callable[[int], None] | None = None) -> None:
        """Run to the end, to a hang, or to the workload's limit of steps.

        Args:
            report: called now and then with the steps done; it may raise to stop.
        """
        self._begin()
        done = 0
        while self._agenda and not self._is_over():
            at, _, action = heapq.heappop(self._agenda)
            action(at)
            done += 1
            if report is not None and done % REPORT_EVERY == 0:
                report(self.log.num_steps)

    @property
    def num_unfinished(self) -> int:
        """Requests still there, or not fetched yet."""
        return self.scheduler.num_requests + len(self._clients)

    def _begin(self) -> None:
        start = self.beginning
        for event in start.initial_events:
            self.scheduler.apply(event)
            if isinstance(event, LeavingAtStart):
                self.scheduler.apply(Freed(event.request_id))
        for slot in start.slots:
            self.worker.resume(slot)
        for name, count in start.unseen.items():
            self._outputs.add(start.at, name, count)
        for name in start.ended:
            self._plan(start.at + self.times.leave.typical, partial(self._leave, name=name))
        for at, name in start.aborts:
            self._plan(at, partial(self._abort, name=name))
        self._plan(start.at, self._call)
        self._plan(start.at, self._look_at_queue)
        if self.policy.fetches_in_thread:
            self._plan(min(start.at, self._clients.next_at or start.at), self._look_at_clients)

    def _plan(self, at: float, action: Callable[[float], None]) -> None:
        self._num_planned += 1
        heapq.heappush(self._agenda, (at, self._num_planned, action))

    def _is_over(self) -> bool:
        if self.hang is not None:
            return True
        if self.log.num_steps >= self.workload.max_steps:
            step = self.workload.first_step + self.log.num_steps
            self.cut = StepLimitReached(
                step, self.workload.max_steps, self.scheduler.num_requests, len(self._clients)
            )
            return True
        until = self.beginning.until
        if until is not None:
            return self._agenda[0][0] > until and not self._idle_calls
        return self._to_end <= 0 and not len(self._clients)

    # The scheduling loop ------------------------------------------------------------------------------------

    def _call(self, now: float) -> None:
        times, scheduler = self.times, self.scheduler
        if not self.policy.fetches_in_thread and not self._fetching and scheduler.num_waiting == 0:
            self._fetching = True
            self._plan(now + times.call, self._fetch)
        self._take_in(now + times.call / 2)
        step = self.log.num_steps
        if scheduler.num_requests == 0:
            self._rest(now, step)
            return
        self.num_calls += 1
        before = scheduler.num_running, scheduler.num_waiting, scheduler.num_free_blocks
        try:
            decision = scheduler.apply(SCHEDULE)
        except SchedulerFailed as failure:
            self.hang = Hang(self.workload.first_step + step, f"the scheduler fails: {failure}")
            return
        self._num_held_back = scheduler.num_held_back(decision)
        self.after_call(decision, before)
        if decision.is_empty:
            self._decision, self._seen_step = decision, self._outputs.seen_step
            self._watch(decision)
            self._plan(now + times.rest.at(step), self._call)
            return
        self._idle_calls = 0
        self._num_preempted += len(decision.preempted)
        tasks = tasks_of(scheduler, decision)
        prompts = sum(self.requests[chunk.request_id].num_prompt_tokens for chunk in tasks.chunks)
        visible = now + times.hand_over.at(step, prompts)
        self._handed = TasksInFlight(tasks, decision, self._outputs.seen_step, visible, prompts)
        if self._sleeping:
            self._sleeping = False
            self._plan(visible + POLL_MS / 2, self._look_at_queue)

    def after_call(self, decision: Decision, before: tuple[int, int, int]) -> None:
        """Called after each call, for subclasses. `before`: running and waiting requests and free blocks before it."""

    def after_forward(self, decision: Decision, forward: Forward) -> None:
        """Called after each step, with the call that it belongs to."""

    def _rest(self, now: float, step: int) -> None:
        """There is nothing to schedule: calls go on at their interval until something else happens."""
        if self._agenda:
            rest = self.times.rest.at(step)
            self._plan(now + rest * max(1, math.ceil((self._agenda[0][0] - now) / rest)), self._call)

    def _watch(self, decision: Decision) -> None:
        """Find a hang: there are requests, but no tasks or outputs are on their way, and no more requests come."""
        is_quiet = self._sleeping and not self._outputs and not self._answers and not len(self._clients)
        self._idle_calls = self._idle_calls + 1 if is_quiet and len(self._agenda) <= 1 else 0
        if self._idle_calls > MOST_IDLE_CALLS:
            reason = (
                f"the head of the queue waits for {decision.not_admitted}"
                if decision.not_admitted
                else "stalled"
            )
            step = self.workload.first_step + self.log.num_steps
            self.hang = Hang(
                step, f"{self._idle_calls} calls in a row hand out nothing, and no forward runs: {reason}"
            )

    # Requests from outside ----------------------------------------------------------------------------------

    def _fetch(self, now: float) -> None:
        """The engine asks for a request that clients sent, and waits for it."""
        if self.scheduler.num_free_slots < 1:
            self._fetched(now, [])
            return
        next_sent = self._clients.next_at
        if next_sent is None:
            return
        if next_sent > now:
            self._plan(next_sent, self._fetch)
            return
        requests = self._clients.fetch(now, self.scheduler.num_free_slots)
        self._plan(now + self.times.fetch, partial(self._fetched, requests=requests))

    def _fetched(self, now: float, requests: Sequence[WorkRequest]) -> None:
        for request in requests:
            self.arrived_before[request.request_id] = self.log.num_steps
            self.scheduler.apply(request.arrived()._replace(accepts=None, num_output_tokens=None))
        self._fetching = False
        if self.policy.fetches_in_thread:
            self._plan(now + LOOK_INTERVAL_MS, self._look_at_clients)

    def _look_at_clients(self, now: float) -> None:
        if self.scheduler.num_waiting:
            self._plan(now + LOOK_INTERVAL_MS, self._look_at_clients)
        else:
            self._fetch(now)

    def _abort(self, now: float, name: str) -> None:
        if name in self.scheduler:
            self.scheduler.apply(Aborted(name))

    # The worker ---------------------------------------------------------------------------------------------

    def _look_at_queue(self, now: float) -> None:
        """Between two forwards: take the tasks that have come, and run the next forward if it has anything to run."""
        times, step, handed = self.times, self.log.num_steps, self._handed
        landed = handed is not None and handed.visible <= now
        if handed is not None and landed:
            self._handed = None
            self.worker.land(handed.tasks)
            self._answers += handed.tasks.dropped
            self._decision, self._seen_step = handed.decision, handed.seen_step
        size = handed.num_prompt_tokens if handed is not None and landed else 0
        pause = times.pause_with_tasks.at(step, size) if landed else times.pause.at(step)
        begin = now + max(0.0, pause - times.check)
        forward = self.worker.forward()
        if landed:
            self._plan(max(now, begin + times.next_call.at(step)), self._call)
        if not forward.num_tokens:
            self._output(begin, step)
            self._wait(begin)
            return
        end = begin + times.forward(step, forward.num_prefill_tokens, forward.num_decode_tokens)
        limit = self.workload.config.max_num_batched_tokens
        refused = max(0, min(self._num_held_back, limit - forward.num_tokens))
        lag = MISSING if self._seen_step == MISSING else step - self._seen_step - 1
        self.log.record_forward(self._decision, forward, self._num_preempted, refused, lag)
        self._num_preempted = 0
        self.after_forward(self._decision, forward)
        self.ends.append(end)
        for name in (*forward.started, *forward.finished):
            self.first_tokens.setdefault(name, end)
        self._output(end, step)
        self._plan(end + times.check, self._look_at_queue)

    def _wait(self, now: float) -> None:
        """Nothing to run: look again when something has come."""
        if self._handed is None:
            self._sleeping = True
        else:
            self._plan(max(now, self._handed.visible) + POLL_MS / 2, self._look_at_queue)

    # The token processor ------------------------------------------------------------------------------------

    def _output(self, end: float, step: int) -> None:
        """The outputs of a forward, and the answers for dropped requests, are on their way to the engine."""
        emitted, answers, self._answers = self.worker.emitted, self._answers, []
        if not emitted and not answers:
            return
        taken_in_at = self._outputs.forwarded(end, step, emitted, answers)
        for name in answers:
            self._plan(taken_in_at[name], partial(self._let_go, name=name))
        for name in emitted:
            if name not in self.worker.slots:
                self._plan(taken_in_at[name], partial(self._last, name=name, step=step))

    def _take_in(self, now: float) -> None:
        """Count the tokens that have been taken in by now."""
        num_tokens = self._outputs.taken_in(now)
        if num_tokens:
            self.scheduler.apply(Emitted(num_tokens))

    def _last(self, now: float, name: str, step: int) -> None:
        """A request's last token was taken in."""
        self._take_in(now)
        if (
            self.workload.config.output_caching
            and self.workload.config.prefix_caching
            and name in self.scheduler
        ):
            self.scheduler.apply(OutputCached(name, self.scheduler.num_total_tokens_of(name)))
        self._plan(now + self.times.leave.at(step), partial(self._leave, name=name))

    def _leave(self, now: float, name: str) -> None:
        if name not in self.scheduler:
            return
        self._take_in(now)
        self.scheduler.apply(Left(name))
        if name not in self.scheduler:
            self._end(name)
            self._plan(now + self.times.free, lambda _: self.scheduler.apply(Freed(name)))

    def _let_go(self, now: float, name: str) -> None:
        """The worker answered for a request that was preempted or aborted."""
        self._take_in(now)
        scheduler = self.scheduler
        if scheduler.is_preempted(name):
            scheduler.apply(Rescheduled(name))
        elif scheduler.is_aborting(name):
            scheduler.apply(Recycled(name))
            self._end(name)

    def _end(self, name: str) -> None:
        if name not in self.ended_in:
            self.ended_in[name] = self.log.num_steps
            self._to_end -= 1
