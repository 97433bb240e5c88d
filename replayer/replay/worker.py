"""The worker of a deployment: it runs the tasks that reach it. Calls and forwards do not come in pairs there.

FastDeploy: `GPUModelRunner.insert_tasks_v1` and `execute_model` (worker/gpu_model_runner.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.model.events import Decision, Forward, StepRow
from fdtrace.replayer.model.request import AcceptancePlan
from fdtrace.replayer.replay.any_scheduler import OrderedScheduler
from fdtrace.replayer.workload.workload import WorkRequest


@dataclass(frozen=True, slots=True)
class DispatchedChunk:
    """A prefill chunk on its way to the worker: `need` tokens are prefilled in all, `num_blocks` held."""

    request_id: str
    start: int
    end: int
    need: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Tasks:
    """What one call hands to the worker: chunks, decodes with the blocks that they hold now, requests to drop."""

    chunks: tuple[DispatchedChunk, ...]
    extended: tuple[tuple[str, int], ...]
    dropped: tuple[str, ...]


def tasks_of(scheduler: OrderedScheduler, decision: Decision) -> Tasks:
    """The tasks of a call. Ask for them right after it."""
    blocks, need = scheduler.num_blocks_of, scheduler.num_prefill_tokens_of
    extended = (request_id for request_id in decision.extended if request_id not in decision.preempted)
    return Tasks(
        tuple(
            DispatchedChunk(name, start, end, need(name), blocks(name))
            for name, start, end in decision.chunks
        ),
        tuple((request_id, blocks(request_id)) for request_id in extended),
        (*decision.preempted, *decision.aborted),
    )


@dataclass(slots=True)
class TasksInFlight:
    """The tasks of a call on their way to the worker, who sees them from `visible` on (ms)."""

    tasks: Tasks
    decision: Decision
    seen_step: int
    """The last step whose outputs the call knew; MISSING: it knew none."""
    visible: float
    num_prompt_tokens: int


@dataclass(slots=True)
class Slot:
    """A request in the worker: tokens in the KV cache, the end of its chunk, and its blocks."""

    request_id: str
    cached: int
    end: int
    need: int
    num_blocks: int
    left: int
    """Output tokens that it still has to make."""
    first_decode: bool = False
    """Whether its next forward is its first one on a decode instance: it has at most one draft and never stalls."""


class Worker:
    """Runs forwards. The acceptances of each request's 1st, 2nd, … decode forward are known beforehand."""

    def __init__(self, config: SchedulerConfig, requests: Mapping[str, WorkRequest]) -> None:
        self.config, self.requests = config, requests
        self.slots: dict[str, Slot] = {}
        self.emitted: dict[str, int] = {}
        """Output tokens that each request made in the last forward."""
        self._plans: dict[str, AcceptancePlan] = {}
        self._num_decodes: dict[str, int] = {}
        self._rows: list[StepRow] = []

    def land(self, tasks: Tasks) -> None:
        """The tasks of a call reach the worker, between two forwards."""
        for request_id, num_blocks in tasks.extended:
            slot = self.slots.get(request_id)
            if slot is not None:
                slot.num_blocks = num_blocks
        for request_id in tasks.dropped:
            self.slots.pop(request_id, None)
        for chunk in tasks.chunks:
            request = self.requests[chunk.request_id]
            left = request.num_output_tokens - (chunk.need - request.num_prompt_tokens)
            if self.config.role == "decode":  # its chunk is the one token that it brought
                self.slots[chunk.request_id] = Slot(
                    chunk.request_id, *(3 * (chunk.start,)), chunk.num_blocks, left, first_decode=True
                )
                continue
            self.slots[chunk.request_id] = Slot(
                chunk.request_id, chunk.start, chunk.end, chunk.need, chunk.num_blocks, left
            )

    def resume(self, slot: Slot) -> None:
        """Give a slot to a request that ran before the first forward. A prefill instance has none after the prefill."""
        if self.config.role == "prefill" and slot.cached >= slot.need:
            return
        self.slots[slot.request_id] = slot

    def forward(self) -> Forward:
        """Run one forward: each chunk that has come and has not run yet, and each decode whose blocks can hold its
        drafts.
        """
        self._rows, self.emitted = [], {}
        forward = Forward(0, 0, 0, [], [], [])
        for slot in list(self.slots.values()):
            if slot.cached >= slot.need:
                self._decode(slot, forward)
            elif slot.cached < slot.end:
                self._prefill(slot, forward)
        return forward

    def rows(self, decision: Decision) -> list[StepRow]:
        """The requests of the last forward, in the order of the slots."""
        return self._rows

    def _prefill(self, slot: Slot, forward: Forward) -> None:
        num_tokens = slot.end - slot.cached
        forward.num_prefill_tokens += num_tokens
        self._rows.append(
            StepRow(slot.request_id, "prefill", num_tokens, slot.cached, num_blocks=slot.num_blocks)
        )
        slot.cached = slot.end
        if slot.cached >= slot.need:
            forward.started.append(slot.request_id)
            if self.config.role == "prefill":
                self.emitted[slot.request_id] = 1
                del self.slots[slot.request_id]
                return
            self._emit(slot, 1, forward)

    def _decode(self, slot: Slot, forward: Forward) -> None:
        """FastDeploy's kernels do not run a decode whose block table is too short (`is_block_step`)."""
        drafts = self.config.num_draft_tokens_of(first=slot.first_decode)
        if not slot.first_decode and (slot.cached + drafts) // self.config.block_size >= slot.num_blocks:
            forward.stalled.append(slot.request_id)
            return
        slot.first_decode = False
        accepted = self._accepted(slot.request_id)
        self._rows.append(
            StepRow(slot.request_id, "decode", 1 + drafts, slot.cached + 1, drafts, accepted, slot.num_blocks)
        )
        forward.num_decode_tokens += 1 + drafts
        forward.num_decodes += 1
        num_new = min(1 + accepted, slot.left)
        slot.cached += num_new
        self._emit(slot, num_new, forward)

    def _emit(self, slot: Slot, num_tokens: int, forward: Forward) -> None:
        self.emitted[slot.request_id] = num_tokens
        slot.left -= num_tokens
        if slot.left <= 0:
            forward.finished.append(slot.request_id)
            del self.slots[slot.request_id]

    def _accepted(self, request_id: str) -> int:
        plan = self._plans.get(request_id)
        if plan is None:
            request = self.requests[request_id]
            plan = self._plans[request_id] = AcceptancePlan(request.accepts, request.num_output_tokens)
        num_before = self._num_decodes.get(request_id, 0)
        self._num_decodes[request_id] = num_before + 1
        return plan.after(num_before + 1) - plan.after(num_before) - 1
