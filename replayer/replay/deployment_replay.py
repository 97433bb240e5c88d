"""Replays a recorded deployment under its own formula and policy: calls in the order of its engine, forwards when
tasks reached the worker.

Calls and forwards do not come in pairs there. Each call is decided with what the recorded call knew. Its tasks reach a
worker, and the worker runs the forwards that belong to the recorded call, with the recorded acceptances.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.call_lags import CallLags, step_lags
from fdtrace.recorder.trace.call_order import CallOrder
from fdtrace.recorder.trace.column_values import MISSING
from fdtrace.recorder.trace.initial_state import InitialRequest
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.history import CallFidelity
from fdtrace.replayer.model.events import Decision
from fdtrace.replayer.replay.any_scheduler import OrderedScheduler
from fdtrace.replayer.replay.ordered_replay import CallComparison, OrderedReplay
from fdtrace.replayer.replay.recorded_order import RecordedOrder
from fdtrace.replayer.replay.row_log import RowLog
from fdtrace.replayer.replay.worker import Slot, Worker, tasks_of
from fdtrace.replayer.workload.workload import Workload, WorkRequest

ReportSteps = Callable[[int], None]
"""Called now and then with the steps done; it may raise to stop."""

ENTERED = ("queued", "joined")
"""Changes of the order with which a request comes to the queue, or in the decode role to the running requests."""
REPORT_EVERY = 2000
"""Calls between two reports of the steps done."""


class DeploymentReplay:
    """Replays a recording whose trace has the order of its calls; `log` has its steps, `calls` its calls.

    `scheduler` decides the calls: the model under the recorded formula and policy, or the real scheduler that recorded.
    """

    order: Literal["recorded"] = "recorded"
    hang = cut = None

    def __init__(
        self,
        recording: Recording,
        order: CallOrder,
        workload: Workload,
        scheduler: OrderedScheduler,
    ) -> None:
        self.recording, self.workload = recording, workload
        by_id = {request.request_id: request for request in workload.requests}
        numbers = recording.requests["request"].tolist()
        ids = recording.requests["request_id"].tolist()
        self.numbers: dict[str, int] = dict(zip(ids, numbers, strict=True))
        self.requests = {number: by_id[name] for number, name in zip(numbers, ids, strict=True)}
        self.scheduler = scheduler
        self._order = order
        self.calls = OrderedReplay(self.scheduler, RecordedOrder(order, self.requests))
        self.worker = Worker(workload.config, by_id)
        self.log = RowLog(self.worker, workload)
        self.steps_after = steps_by_call(order, recording)
        self._lags = _lags(order, recording)
        self._landing: dict[int, list[Slot]] = {}
        """Tasks of calls before the recording: slots, by the forward at which they reach the worker."""
        self._resume(order)
        self._decision = Decision(0, MISSING, MISSING, MISSING)
        self._num_preempted = self._num_held_back = 0

    def run(self, report: ReportSteps | None = None) -> None:
        """Decide every call and run every forward."""
        for _ in self.advance(report):
            pass

    def advance(self, report: ReportSteps | None = None) -> Iterator[CallComparison]:
        """Yield each call after its forwards have run."""
        self._run_forwards(MISSING)
        for done, compared in enumerate(self.calls.calls()):
            decision = compared.decision
            if decision is not None:
                self._decision = decision
                self._num_preempted += len(decision.preempted)
                self._num_held_back = self.scheduler.num_held_back(decision)
                if not decision.is_empty:
                    self.worker.land(tasks_of(self.scheduler, decision))
            self._run_forwards(compared.recorded.call)
            if report is not None and done % REPORT_EVERY == 0:
                report(self.log.num_steps)
            yield compared

    def _run_forwards(self, call: int) -> None:
        limit = self.workload.config.max_num_batched_tokens
        for _ in range(self.steps_after.get(call, 0)):
            if self._landing:
                self._land_earlier()
            forward = self.worker.forward()
            refused = max(0, min(self._num_held_back, limit - forward.num_tokens))
            lag = int(self._lags[self.log.num_steps])
            self.log.record_forward(self._decision, forward, self._num_preempted, refused, lag)
            self._num_preempted = 0

    @property
    def num_unfinished(self) -> int:
        """Requests that have not ended at the end of the replay."""
        return self.scheduler.num_requests

    def call_fidelity(self) -> CallFidelity:
        """How many of the calls are reproduced."""
        calls = self.calls
        return CallFidelity(calls.num_calls, calls.num_equal, calls.departure, calls.num_left_out)

    @property
    def num_decided(self) -> int:
        """Recorded steps up to the first of a request that no recorded call knew.

        A recording may end between such a call and the forward of its tasks: the worker's records go on for a moment.
        """
        order, steps = self._order, self.recording.steps["step"]
        known = {*order.changes["request"].tolist(), *order.did["request"].tolist()}
        unknown = (first for first in self.recording.details.row_scan.queued if first.request not in known)
        undecided = min(
            (first.first_step for first in unknown if first.num_computed_tokens == 0), default=None
        )
        calls = order.calls["call"]
        in_the_end = self.steps_after.get(int(calls[-1]), 0) if len(calls) else 0
        if undecided is None:
            return self._handed_out(len(steps) - in_the_end)
        return max(int(np.searchsorted(steps, undecided)), len(steps) - in_the_end)

    def _handed_out(self, last: int) -> int:
        """Recorded steps up to the first, from the index `last` on, of a request that no recorded call handed out."""
        order, steps, read = self._order, self.recording.steps["step"], self.recording.details.step_rows
        if read is None:
            return len(steps)
        entered = order.changes["request"][np.isin(order.changes["kind"], ENTERED)]
        waiting = {*entered.tolist()} - {*order.did["request"][order.did["did"] != "refused"].tolist()}
        names = {self.requests[number].request_id for number in waiting if number in self.requests}
        for at in range(last, len(steps)) if names else ():
            if any(row.request_id in names for row in read(int(steps[at]))):
                return at
        return len(steps)

    def _resume(self, order: CallOrder) -> None:
        """Give slots to the requests that ran before the first forward, with the blocks that the first call found.

        Tasks of calls before the recording may still have been on their way to the worker. Their requests first ran, or
        got their blocks, in a later forward.
        """
        running, first_step = _found_running(order), int(self.recording.steps["step"][0])
        for initial in requests_at_worker(self.recording, order):
            request = self.requests[initial.request]
            computed, blocks = running.get(initial.request, (0, 0))
            slot = _slot(request, initial, max(blocks, initial.num_blocks))
            if initial.decoding and initial.first_step > first_step:
                self._landing.setdefault(initial.first_step - first_step, []).append(replace(slot))
                slot.num_blocks = 0
            elif not initial.decoding and computed > slot.cached and not _handed_out(order, initial):
                end = min(computed, request.num_prompt_tokens)
                self._landing.setdefault(initial.first_step - first_step, []).append(replace(slot, end=end))
            self.worker.resume(slot)

    def _land_earlier(self) -> None:
        """Tasks of calls before the recording reach the worker."""
        for slot in self._landing.pop(self.log.num_steps, ()):
            current = self.worker.slots.get(slot.request_id)
            if current is not None:
                current.num_blocks, current.end = (
                    max(current.num_blocks, slot.num_blocks),
                    max(current.end, slot.end),
                )


def requests_at_worker(recording: Recording, order: CallOrder) -> list[InitialRequest]:
    """The requests that the worker has, or gets by tasks of calls before the recording.

    Some of them had no computed tokens when the recording began: an earlier call had scheduled their first chunk.
    """
    running = _found_running(order)
    on_their_way = [
        first
        for first in recording.details.row_scan.queued
        if running.get(first.request, (0, 0))[0] > 0
        and not first.num_computed_tokens
        and not _handed_out(order, first)
    ]
    known = {first.request for first in recording.details.initial}
    return [*recording.details.initial, *(first for first in on_their_way if first.request not in known)]


def _handed_out(order: CallOrder, initial: InitialRequest) -> bool:
    """Whether a recorded call handed out the chunk that a request ran first."""
    operations = order.did
    chunks = (operations["did"] == "chunk") & (operations["request"] == initial.request)
    return bool((chunks & (operations["num_computed_tokens"] == initial.num_computed_tokens)).any())


def resumed_slots(
    recording: Recording, order: CallOrder, requests: Mapping[int, WorkRequest]
) -> Iterator[Slot]:
    """The slots of the worker before the first recorded forward; `requests` by their numbers."""
    running = _found_running(order)
    for initial in requests_at_worker(recording, order):
        _, blocks = running.get(initial.request, (0, 0))
        yield _slot(requests[initial.request], initial, max(blocks, initial.num_blocks))


def requests_by_number(recording: Recording, workload: Workload) -> dict[int, WorkRequest]:
    """The requests of a recording's workload, by the recording's numbers."""
    by_id = {request.request_id: request for request in workload.requests}
    columns = recording.requests
    pairs = zip(columns["request"].tolist(), columns["request_id"].tolist(), strict=True)
    return {number: by_id[name] for number, name in pairs}


def _slot(request: WorkRequest, initial: InitialRequest, num_blocks: int) -> Slot:
    """The slot of a request at its first recorded forward; a prefill goes on with its next chunk.

    The engine reported the state at the begin of the recording, without the tokens of forwards that were still running.
    If the request ended in the recording, its tokens since then are known; it had made all others before.
    """
    num_output = initial.num_computed_tokens - request.num_prompt_tokens
    computed = initial.num_computed_tokens - 1 if initial.decoding else initial.num_computed_tokens
    prefill_end = computed if initial.decoding else request.num_prompt_tokens
    left = request.num_output_tokens - max(0, num_output)
    if initial.decoding and request.target is None and request.abort_after is None:
        left = sum(1 + int(accepted) for accepted in request.accepts)
        computed = prefill_end = request.num_prompt_tokens + request.num_output_tokens - left - 1
    return Slot(request.request_id, computed, computed, prefill_end, num_blocks, left)


def _found_running(order: CallOrder) -> dict[int, tuple[int, int]]:
    """Tokens computed and blocks of each request that the first recorded call found running."""
    changes, running = order.changes, {}
    for index in np.flatnonzero(changes["kind"] == "found").tolist():
        detail = json.loads(changes["detail"][index])
        running[int(changes["request"][index])] = (
            int(detail.get("num_computed_tokens", 0)),
            int(detail.get("num_blocks", 0)),
        )
    return running


def _lags(order: CallOrder, recording: Recording) -> NDArray[np.int64]:
    """For each step: how many earlier forwards its call had no outputs of. It is taken from the recording: a replayed
    call gets the outputs that the recorded call had.
    """
    seen = CallLags(order.seen["call"], np.maximum.accumulate(order.seen["step"]))
    return step_lags(order.calls, recording.steps, seen)


def steps_by_call(order: CallOrder, recording: Recording) -> Mapping[int, int]:
    """How many recorded steps belong to each call (MISSING: before the first), as the recorder joins them.

    A step belongs to the last call whose tasks had reached the worker, or to a later call that handed out nothing and
    had ended when the step began.
    """
    calls = order.calls
    numbers, idle, entered = calls["call"].tolist(), calls["idle"].tolist(), calls["first_step"].tolist()
    ended = (calls["ts"] + 1000 * np.maximum(calls["schedule_us"], 0)).tolist()
    num_steps: dict[int, int] = {}
    current, next_call = MISSING, 0
    for step, ts in zip(recording.steps["step"].tolist(), recording.steps["ts"].tolist(), strict=True):
        while next_call < len(numbers) and (idle[next_call] or MISSING != entered[next_call] <= step):
            current = max(current, next_call) if not idle[next_call] else current
            next_call += 1
        while current + 1 < len(numbers) and idle[current + 1] and ended[current + 1] <= ts:
            current += 1
        number = numbers[current] if current >= 0 else MISSING
        num_steps[number] = num_steps.get(number, 0) + 1
    return num_steps
