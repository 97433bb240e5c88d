"""A recorded deployment replayed under what recorded it: calls in the order of its engine, forwards as tasks landed.

Calls and forwards are not in step there. Each call is decided by what the recorded one knew, its tasks reach a worker,
and the worker runs the forwards that belonged to the recorded call, with the recorded acceptances.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from fdtrace.recorder.trace.column_values import MISSING

from fdtrace.recorder.trace.call_order import CallOrder
from fdtrace.recorder.trace.recording import InitialRequest, Recording
from fdtrace.replayer.config import Policy
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.history.history import CallFidelity
from fdtrace.replayer.model.events import Decision
from fdtrace.replayer.model.scheduler import Scheduler
from fdtrace.replayer.replay.ordered import OrderedReplay
from fdtrace.replayer.replay.recorded_order import RecordedOrder
from fdtrace.replayer.replay.row_log import RowLog
from fdtrace.replayer.replay.worker import Slot, Worker, tasks_of
from fdtrace.replayer.workload.workload import Workload, WorkRequest

Looked = Callable[[int], None]
"""Called now and then with the steps done; it may raise to stop."""

LOOK_EVERY = 2000
"""Calls between two looks."""


class DeploymentReplay:
    """Replays a recording whose trace has the order of its calls; `log` has its steps, `calls` its calls."""

    order: Literal["recorded"] = "recorded"
    hang = cut = None

    def __init__(
        self,
        recording: Recording,
        order: CallOrder,
        workload: Workload,
        formula: Formula,
        policy: Policy,
        *,
        explain: bool = False,
    ) -> None:
        self.recording, self.workload = recording, workload
        by_id = {request.request_id: request for request in workload.requests}
        numbers = recording.requests["request"].tolist()
        ids = recording.requests["request_id"].tolist()
        self.numbers: dict[str, int] = dict(zip(ids, numbers, strict=True))
        self.requests = {number: by_id[name] for number, name in zip(numbers, ids, strict=True)}
        self.scheduler = Scheduler(workload.config, formula, policy, explain=explain)
        self.calls = OrderedReplay(self.scheduler, RecordedOrder(order, self.requests))
        self.worker = Worker(workload.config, by_id)
        self.log = RowLog(self.worker, workload)
        self.steps_after = steps_by_call(order, recording)
        self._resume(order)
        self._decision = Decision(0, MISSING, MISSING, MISSING)
        self._num_preempted = self._num_held_back = 0

    def run(self, looked: Looked | None = None) -> None:
        """Decide every call and run every forward."""
        self._run_forwards(MISSING)
        for done, decided in enumerate(self.calls.calls()):
            decision = decided.decision
            if decision is not None:
                self._decision = decision
                self._num_preempted += len(decision.preempted)
                self._num_held_back = self.scheduler.num_held_back(decision)
                if not decision.is_empty:
                    self.worker.land(tasks_of(self.scheduler, decision))
            self._run_forwards(decided.recorded.call)
            if looked is not None and done % LOOK_EVERY == 0:
                looked(self.log.num_steps)

    def _run_forwards(self, call: int) -> None:
        limit = self.workload.config.max_num_batched_tokens
        for _ in range(self.steps_after.get(call, 0)):
            forward = self.worker.forward()
            refused = max(0, min(self._num_held_back, limit - forward.num_tokens))
            self.log.record_forward(self._decision, forward, self._num_preempted, refused)
            self._num_preempted = 0

    @property
    def num_unfinished(self) -> int:
        """Requests that are not done at its end."""
        return self.scheduler.num_requests

    def call_fidelity(self) -> CallFidelity:
        """How many of the calls are reproduced."""
        calls = self.calls
        return CallFidelity(calls.num_calls, calls.num_equal, calls.departure, calls.num_left_out)

    def _resume(self, order: CallOrder) -> None:
        """Requests that ran before the first forward hold slots, with the blocks that the first call found."""
        found = _blocks_found(order)
        for first in self.recording.details.initial:
            request, blocks = self.requests[first.request], found.get(first.request, 0)
            self.worker.resume(_slot(request, first, max(blocks, first.num_blocks)))


def _slot(request: WorkRequest, first: InitialRequest, num_blocks: int) -> Slot:
    """The slot of a request at its first recorded forward; a prefill goes on with its next chunk.

    The engine, which tells a recording what was there, lacks the tokens of forwards under way. Where the request ended,
    what it made since is known: all else it had made before.
    """
    made = first.num_computed_tokens - request.num_prompt_tokens
    computed = first.num_computed_tokens - 1 if first.decoding else first.num_computed_tokens
    need = computed if first.decoding else request.num_prompt_tokens
    left = request.num_output_tokens - max(0, made)
    if first.decoding and request.target is None and request.abort_after is None:
        left = sum(1 + int(accepted) for accepted in request.accepts)
        computed = need = request.num_prompt_tokens + request.num_output_tokens - left - 1
    return Slot(request.request_id, computed, computed, need, num_blocks, left)


def _blocks_found(order: CallOrder) -> dict[int, int]:
    """Blocks of each request that the first recorded call found running."""
    changes, found = order.changes, {}
    for at in np.flatnonzero(changes["kind"] == "found").tolist():
        detail = json.loads(changes["detail"][at])
        found[int(changes["request"][at])] = int(detail.get("num_blocks", 0))
    return found


def steps_by_call(order: CallOrder, recording: Recording) -> Mapping[int, int]:
    """How many recorded steps belong to each call (MISSING: before the first), as the recorder joins them.

    A step belongs to the last call whose tasks had landed, or to a later one that handed out nothing and had ended when
    the step began.
    """
    calls = order.calls
    numbers, idle, first = calls["call"].tolist(), calls["idle"].tolist(), calls["first_step"].tolist()
    ended = (calls["ts"] + 1000 * np.maximum(calls["schedule_us"], 0)).tolist()
    found: dict[int, int] = {}
    at, landed = MISSING, 0
    for step, ts in zip(recording.steps["step"].tolist(), recording.steps["ts"].tolist(), strict=True):
        while landed < len(numbers) and (idle[landed] or MISSING != first[landed] <= step):
            at = max(at, landed) if not idle[landed] else at
            landed += 1
        while at + 1 < len(numbers) and idle[at + 1] and ended[at + 1] <= ts:
            at += 1
        call = numbers[at] if at >= 0 else MISSING
        found[call] = found.get(call, 0) + 1
    return found
