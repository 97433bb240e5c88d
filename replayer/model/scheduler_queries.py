"""Questions that the scheduler model answers. None of them changes it."""

from __future__ import annotations

from collections.abc import Hashable

from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.model.block_pool import BlockPool
from fdtrace.replayer.model.block_reserve import Reserve
from fdtrace.replayer.model.events import Decision, StepRow
from fdtrace.replayer.model.request import AcceptancePlan, Request
from fdtrace.replayer.model.roles import num_blocks_asked
from fdtrace.replayer.model.state import State


class SchedulerQueries:
    """The read-only half of a `Scheduler`."""

    config: SchedulerConfig
    formula: Formula
    _state: State
    _reserve: Reserve

    @property
    def num_running(self) -> int:
        """Requests in the running queue."""
        return len(self._state.running)

    @property
    def num_requests(self) -> int:
        """Requests in the scheduler: running, waiting, or not released by the worker yet."""
        return len(self._state.requests)

    @property
    def num_waiting(self) -> int:
        """Requests in the waiting queue."""
        return len(self._state.waiting)

    @property
    def num_free_slots(self) -> int:
        """Slots of the worker that no request holds (FastDeploy: `ResourceManager.available_batch`)."""
        return max(0, self.config.max_num_seqs - self._state.num_slots_taken())

    @property
    def num_free_blocks(self) -> int:
        """Free KV blocks."""
        return self._state.pool.num_free

    @property
    def num_running_decodes(self) -> int:
        """Running requests past their prefill."""
        return len(self._state.running) - len(self._state.prefilling)

    @property
    def name(self) -> str:
        """Its formula's name."""
        return self.formula.name

    @property
    def num_asking(self) -> int:
        """In the prefill and decode roles: requests that have arrived and hold no slot."""
        return len(self._state.asking)

    @property
    def num_preallocated(self) -> int:
        """Requests that have their slots and blocks and do not run yet."""
        return len(self._state.preallocated)

    @property
    def num_preallocated_blocks(self) -> int:
        """KV blocks that preallocated requests hold."""
        return sum(request.num_blocks for request in self._state.preallocated.values())

    @property
    def num_blocks_asked(self) -> int | None:
        """Free blocks that the first request without a slot asks for; None: there is no such request."""
        return num_blocks_asked(self._state)

    @property
    def num_blocks(self) -> int:
        """KV blocks in all."""
        return self.config.num_blocks

    @property
    def num_reserved_blocks(self) -> int | None:
        """Free blocks that are reserved for the running requests now; None: there is no reserve now."""
        return self._reserve.reserved(self._state)

    @property
    def new_token_ratio(self) -> float | None:
        """The new-token ratio of the reserve; None: the reserve does not use one."""
        return self._reserve.new_token_ratio

    @property
    def snapshot_is_whole(self) -> bool:
        """Whether `snapshot` holds everything that decides all later decisions."""
        return type(self._state.pool) is BlockPool

    def snapshot(self, decision: Decision) -> Hashable:
        """The state after a call and its forward. Equal snapshots go on equally until an event comes from outside."""
        return self._reserve.snapshot(), *_snapshot(self._state)

    def num_held_back(self, decision: Decision) -> int:
        """Prompt tokens that did not fit into this call's budget: the rest of running prefills, and the head of the
        waiting queue if the budget stopped it. Ask before the forward.
        """
        return _num_held_back(self._state, decision)

    @property
    def head_of_queue(self) -> tuple[str, int] | None:
        """The first waiting request and the tokens of its prefill; None: nothing waits."""
        waiting = self._state.waiting
        return (waiting[0].id, waiting[0].need_prefill) if waiting else None

    @property
    def idle(self) -> bool:
        """Whether no request runs, waits, asks for a slot, holds one before it runs, or is preempted."""
        state = self._state
        return not (state.running or state.waiting or state.preempted or state.asking or state.preallocated)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._state.requests

    def is_preempted(self, request_id: str) -> bool:
        """Whether a call preempted it and the worker has not let go of it."""
        return request_id in self._state.preempted

    def is_aborting(self, request_id: str) -> bool:
        """The same of an abort."""
        return request_id in self._state.aborting

    def num_blocks_of(self, request_id: str) -> int:
        """KV blocks that a request holds."""
        return self._state.requests[request_id].num_blocks

    def num_prefill_tokens_of(self, request_id: str) -> int:
        """Tokens that a request's prefill computes: its prompt; after a preemption also its output so far."""
        return self._state.requests[request_id].need_prefill

    def num_output_tokens_of(self, request_id: str) -> int:
        """Output tokens that a request has emitted."""
        return self._state.requests[request_id].output_at(self._state.num_forwards)

    def num_total_tokens_of(self, request_id: str) -> int:
        """Prompt and output tokens of a request."""
        return self._state.total(self._state.requests[request_id])

    def progress_of(self, request_id: str) -> tuple[int, int]:
        """Of a request with known acceptances: the tokens that its prefills emitted, and its decode forwards."""
        request = self._state.requests[request_id]
        return request.emitted, request.forwards_at(self._state.num_forwards)

    def rows(self, decision: Decision) -> list[StepRow]:
        """The requests of the forward that follows this call. Ask between the call and the forward."""
        return _rows(self._state, decision)

    def can_decode(self, request_id: str) -> bool:
        """Whether its block table holds all that its next decode may write."""
        return self._state.can_decode(self._state.requests[request_id])

    def decodes(self) -> list[str]:
        """The requests that the next forward decodes, in the worker's order, without stalled ones."""
        return _decodes(self._state)

    def stalled(self) -> list[str]:
        """The decodes that the next forward cannot run because their block tables are too short, in the worker's
        order.
        """
        return [request.id for request in self._state.stalled()]

    def check(self) -> None:
        """AssertionError if an invariant of blocks, queues or tokens does not hold."""
        from fdtrace.replayer.model.invariants import check  # noqa: PLC0415 - only tests pay for it

        check(self._state)


def plan_of(scheduler: SchedulerQueries, request_id: str) -> AcceptancePlan:
    """The acceptances of a request of the scheduler that arrived with them."""
    plan = scheduler._state.requests[request_id].plan
    assert plan is not None, f"the output of {request_id} is not known beforehand"
    return plan


def _snapshot(state: State) -> tuple[Hashable, ...]:
    queues = (state.running, state.waiting, state.preempted.values())
    places = tuple(tuple(_place(request) for request in queue) for queue in queues)
    before_running = tuple(state.preallocated), tuple(request.id for request in state.asking)
    return state.pool.snapshot(), places, before_running


def _num_held_back(state: State, decision: Decision) -> int:
    if not state.prefilling and decision.not_admitted != "budget":
        return 0
    demand = 0
    for request in state.prefilling.values():
        demand += request.need_prefill - request.computed
    if decision.not_admitted == "budget" and state.waiting:
        demand += state.waiting[0].need_prefill
    return demand


def _place(request: Request) -> tuple[Hashable, ...]:
    """The state of one request in a snapshot."""
    return request.id, request.status, request.computed, request.need_prefill, request.num_blocks


def _decodes(state: State) -> list[str]:
    stalled = {request.id for request in state.stalled()}
    return [request_id for request_id in state.decoding if request_id not in stalled]


def _rows(state: State, decision: Decision) -> list[StepRow]:
    config, now = state.config, state.num_forwards
    chunks = decision.chunks if config.role != "decode" else ()
    rows = [
        StepRow(name, "prefill", end - start, start, num_blocks=state.requests[name].num_blocks)
        for name, start, end in chunks
    ]
    for name in _decodes(state):
        request = state.requests[name]
        accepted = 0
        if request.plan is not None:
            done = request.forwards_at(now)
            accepted = request.plan.after(done + 1) - request.plan.after(done) - 1
        total = state.total(request)
        drafts = config.num_draft_tokens_of(first=name in state.first_decodes)
        rows.append(StepRow(name, "decode", 1 + drafts, total, drafts, accepted, request.num_blocks))
    return rows
