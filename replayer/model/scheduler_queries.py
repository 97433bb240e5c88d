"""What can be asked of the scheduler model."""

from __future__ import annotations

from collections.abc import Hashable

from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.model.block_pool import BlockPool
from fdtrace.replayer.model.block_reserve import Reserve
from fdtrace.replayer.model.events import Decision, StepRow
from fdtrace.replayer.model.request import Request
from fdtrace.replayer.model.roles import num_blocks_asked
from fdtrace.replayer.model.state import State


class SchedulerQueries:
    """The questions that a scheduler answers; none changes it."""

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
        """Requests known: running, waiting, or not let go of by the worker."""
        return len(self._state.requests)

    @property
    def num_waiting(self) -> int:
        """Requests in the waiting queue."""
        return len(self._state.waiting)

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
        """KV blocks that these hold."""
        return sum(request.num_blocks for request in self._state.preallocated.values())

    @property
    def num_blocks_asked(self) -> int | None:
        """Free blocks that the first request without a slot asks for; None: there is none."""
        return num_blocks_asked(self._state)

    @property
    def num_blocks(self) -> int:
        """KV blocks in all."""
        return self.config.num_blocks

    @property
    def num_reserved_blocks(self) -> int | None:
        """Free blocks that are kept for the running requests as it stands; None: none are."""
        return self._reserve.reserved(self._state)

    @property
    def new_token_ratio(self) -> float | None:
        """The ratio that blocks are reserved by; None: they are reserved otherwise."""
        return self._reserve.new_token_ratio

    @property
    def snapshot_is_whole(self) -> bool:
        """Whether all later decisions follow from `snapshot`."""
        return type(self._state.pool) is BlockPool

    def snapshot(self, decision: Decision) -> Hashable:
        """The state after a call and its forward, equal for equal states as long as nothing comes from outside."""
        state = self._state
        queues = (state.running, state.waiting, state.preempted.values())
        places = tuple(tuple(_place(request) for request in queue) for queue in queues)
        given = tuple(state.preallocated), tuple(request.id for request in state.asking)
        return self._reserve.snapshot(), state.pool.snapshot(), places, given

    def num_held_back(self, decision: Decision) -> int:
        """Prompt tokens that the budget of this call held back: of prefills cut short, and of the head of the
        queue. Asked before the forward.
        """
        state = self._state
        if not state.prefilling and decision.not_admitted != "budget":
            return 0
        demand = 0
        for request in state.prefilling.values():
            demand += request.need_prefill - request.computed
        if decision.not_admitted == "budget" and state.waiting:
            demand += state.waiting[0].need_prefill
        return demand

    @property
    def head_of_queue(self) -> tuple[str, int] | None:
        """The first waiting request and the tokens of its prefill; None: nothing waits."""
        waiting = self._state.waiting
        return (waiting[0].id, waiting[0].need_prefill) if waiting else None

    @property
    def idle(self) -> bool:
        """Whether nothing runs, waits, asks or is about to be rescheduled."""
        state = self._state
        return not (state.running or state.waiting or state.preempted or state.asking or state.preallocated)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._state.requests

    def num_blocks_of(self, request_id: str) -> int:
        """KV blocks that a request holds."""
        return self._state.requests[request_id].num_blocks

    def num_prefill_tokens_of(self, request_id: str) -> int:
        """Tokens that a request's prefill covers: its prompt, and after a preemption its output so far."""
        return self._state.requests[request_id].need_prefill

    def num_output_tokens_of(self, request_id: str) -> int:
        """Output tokens that a request made."""
        return self._state.requests[request_id].output_at(self._state.num_forwards)

    def num_total_tokens_of(self, request_id: str) -> int:
        """Prompt and output tokens of a request."""
        return self._state.total(self._state.requests[request_id])

    def progress_of(self, request_id: str) -> tuple[int, int]:
        """Tokens that a request of known acceptances emitted in prefills, and its decode forwards."""
        request = self._state.requests[request_id]
        return request.emitted, request.forwards_at(self._state.num_forwards)

    def rows(self, decision: Decision) -> list[StepRow]:
        """The requests of the forward that follows this call, asked between the two."""
        return _rows(self._state, decision)

    def can_decode(self, request_id: str) -> bool:
        """Whether its block table holds all that its next decode may write."""
        return self._state.can_decode(self._state.requests[request_id])

    def decodes(self) -> list[str]:
        """The requests that the next forward decodes, in the worker's order: stalled ones left out."""
        return _decodes(self._state)

    def stalled(self) -> list[str]:
        """The decodes that the next forward cannot run, their block tables being too short, in the worker's
        order.
        """
        return [request.id for request in self._state.stalled()]

    def check(self) -> None:
        """AssertionError where an invariant does not hold: blocks, queues, tokens."""
        from fdtrace.replayer.model.invariants import check  # noqa: PLC0415 - only tests pay for it

        check(self._state)


def _place(request: Request) -> tuple[Hashable, ...]:
    """Where a request stands."""
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
