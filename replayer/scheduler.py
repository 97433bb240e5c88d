"""The scheduler model: events in, decisions out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

from replayer.blocks import BlockPool
from replayer.call import Call
from replayer.config import ORIGINAL, Policy, SchedulerConfig
from replayer.events import (
    Aborted,
    Arrived,
    Cached,
    Decision,
    Emitted,
    Event,
    Finished,
    Forward,
    Forwarded,
    Ready,
    Recycled,
    Rescheduled,
    Resumed,
    Schedule,
)
from replayer.formulas.base import Formula
from replayer.formulas.variables import Variables
from replayer.history import StepRow
from replayer.prefix_cache import PrefixCache
from replayer.request import Plan, Request, Status
from replayer.reserve import reserve_of
from replayer.state import State


def _pool(config: SchedulerConfig) -> BlockPool:
    """FastDeploy frees blocks past the prefix cache in the decode role: `ResourceManagerV1._free_blocks`."""
    if config.prefix_caching and config.role != "decode":
        return PrefixCache(config.num_blocks, config.block_size)
    return BlockPool(config.num_blocks)


class Scheduler:
    """A model of FastDeploy's V1 scheduler under a budget formula and a policy.

    `apply` is the only way to change it. A live engine drives it as

        decision = scheduler.apply(Schedule())
        ... run decision.chunks, and one decode step of each of scheduler.decodes() ...
        scheduler.apply(Emitted({request_id: tokens emitted}))
        scheduler.apply(Finished(id)) for each that is done, Rescheduled(id) for each of decision.preempted,
        Recycled(id) for each of decision.aborted

    and a replay, which knows the acceptances beforehand, with `Forwarded()` in place of `Emitted` and
    `Finished`. With `explain`, each decision carries its reasons.
    """

    explains = True
    tells_rows = False
    engine: str | None = None

    def __init__(
        self, config: SchedulerConfig, formula: Formula, policy: Policy = ORIGINAL, *, explain: bool = True
    ) -> None:
        self.config, self.formula, self.policy, self.explain = config, formula, policy, explain
        self.num_calls = 0
        self._state = State(config, policy, _pool(config))
        self._reserve = reserve_of(config, policy)
        self._variables = Variables.of(config)
        self._chunks: list[tuple[str, int, int]] = []
        self._handlers: dict[type[Any], Callable[[Any], Any]] = {
            Arrived: self._arrived,
            Resumed: self._resumed,
            Ready: self._ready,
            Aborted: self._aborted,
            Schedule: self._schedule,
            Emitted: self._emitted,
            Forwarded: self._forwarded,
            Finished: self._finished,
            Rescheduled: self._rescheduled,
            Recycled: self._recycled,
        }

    @overload
    def apply(self, event: Schedule) -> Decision: ...
    @overload
    def apply(self, event: Forwarded) -> Forward: ...
    @overload
    def apply(
        self,
        event: Arrived | Resumed | Cached | Ready | Aborted | Emitted | Finished | Rescheduled | Recycled,
    ) -> None: ...
    def apply(self, event: Event) -> Decision | Forward | None:
        """Take one event; `Schedule` gives the call's `Decision`, `Forwarded` what ran, all others nothing.

        KeyError: the event names a request that is not known, or not in a state in which it can happen.
        """
        result: Decision | Forward | None = self._handlers[type(event)](event)
        return result

    # What can be asked --------------------------------------------------------------------------------------

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

    def num_held_back(self, decision: Decision) -> int:
        """Prompt tokens that the budget of this call held back: of prefills cut short, and of the head of the
        queue. Asked before the forward.
        """
        state = self._state
        if not state.prefilling and decision.not_admitted != "budget":
            return 0
        demand = sum(request.need_prefill - request.computed for request in state.prefilling.values())
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
        """Whether nothing runs, waits or is about to be rescheduled."""
        state = self._state
        return not (state.running or state.waiting or state.preempted)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._state.requests

    def num_blocks_of(self, request_id: str) -> int:
        """KV blocks that a request holds."""
        return self._state.requests[request_id].num_blocks

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
        state, now, drafts = self._state, self._state.num_forwards, self.config.num_draft_tokens
        rows = [
            StepRow(name, "prefill", end - start, start, num_blocks=state.requests[name].num_blocks)
            for name, start, end in decision.chunks
        ]
        for name in self.decodes():
            request = state.requests[name]
            accepted = 0
            if request.plan is not None:
                done = request.forwards_at(now)
                accepted = request.plan.after(done + 1) - request.plan.after(done) - 1
            total = state.total(request)
            rows.append(StepRow(name, "decode", 1 + drafts, total, drafts, accepted, request.num_blocks))
        return rows

    def can_decode(self, request_id: str) -> bool:
        """Whether its block table holds all that its next decode may write."""
        return self._state.can_decode(self._state.requests[request_id])

    def decodes(self) -> list[str]:
        """The requests that the next forward decodes, in the worker's order: stalled ones left out."""
        stalled = {request.id for request in self._state.stalled()}
        return [request_id for request_id in self._state.decoding if request_id not in stalled]

    def stalled(self) -> list[str]:
        """The decodes that the next forward cannot run, their block tables being too short, in the worker's
        order.
        """
        return [request.id for request in self._state.stalled()]

    def check(self) -> None:
        """AssertionError where an invariant does not hold: blocks, queues, tokens."""
        from replayer.invariants import check  # noqa: PLC0415 - only tests pay for it

        check(self._state)

    # Events -------------------------------------------------------------------------------------------------

    def _arrived(self, event: Arrived) -> None:
        if event.request_id in self._state.requests:
            raise KeyError(f"request {event.request_id!r} is already there")
        self._state.arrive(self._request(event))

    def _request(self, event: Arrived) -> Request:
        plan = None
        if event.accepts is not None:
            if event.num_output_tokens is None:
                raise KeyError(
                    f"request {event.request_id!r}: acceptances are given, and no end of the output"
                )
            plan = Plan(event.accepts, event.num_output_tokens)
        most = event.max_tokens
        if most is None:  # as `_get_running_request_reserve_blocks` of release 2.6 has it
            most = self.config.max_model_len - event.num_prompt_tokens
        request = Request(event.request_id, event.num_prompt_tokens, most, event.ready, plan)
        request.block_key = event.block_key
        return request

    def _resumed(self, event: Resumed) -> None:
        request = self._request(event.arrived)
        request.emitted, request.forwards = event.num_emitted_tokens, event.num_forwards
        self._state.resume(request, event.num_computed_tokens, event.num_blocks)

    def _ready(self, event: Ready) -> None:
        self._state.requests[event.request_id].ready = True

    def _aborted(self, event: Aborted) -> None:
        self._state.want_abort(self._state.requests[event.request_id])

    def _schedule(self, event: Schedule) -> Decision:
        state, v = self._state, self._variables
        v.num_running = len(state.running)
        v.num_running_decodes = v.num_running - len(state.prefilling)
        v.num_waiting = len(state.waiting)
        decision = Decision(self.num_calls, self.formula.budget(v), v.num_running_decodes)
        self.num_calls += 1
        charge = self.formula.charge(v)
        call = Call(state, self.policy, self._reserve, decision, charge=charge, explain=self.explain)
        call.run()
        self._chunks = decision.chunks
        counted = decision.token_budget - call.budget
        if charge == 0:  # such a formula reserves the decodes' tokens beforehand
            counted += self.config.max_num_batched_tokens - decision.token_budget
        decision.num_scheduled_tokens = counted
        decision.num_running = len(state.running)
        decision.num_waiting = len(state.waiting)
        decision.num_free_blocks = state.pool.num_free
        return decision

    def _emitted(self, event: Emitted) -> None:
        for request_id, num_tokens in event.num_tokens.items():
            self._state.emit(self._state.requests[request_id], num_tokens)

    def _forwarded(self, event: Forwarded) -> Forward:
        """A forward: chunks run whole, decodes run 1 + K tokens unless stalled (`is_block_step`)."""
        state, chunks = self._state, self._chunks
        self._chunks = []
        stalled = state.stalled()
        num_decodes = len(state.decoding) - len(stalled)
        done = state.forward(stalled)
        started, finished = [], []
        for request_id, _, end in chunks:
            request = state.requests[request_id]
            if end >= request.need_prefill:
                state.emit(request, 1)
                assert request.plan is not None, f"the output of {request_id} is not known beforehand"
                if request.emitted + request.plan.after(request.forwards) >= request.plan.output:
                    finished.append(request)
                else:
                    started.append(request_id)
        finished.extend(request for request in done if request not in finished)
        for request in finished:
            state.finish(request)
        return Forward(
            num_prefill_tokens=sum(end - start for _, start, end in chunks),
            num_decode_tokens=num_decodes * (1 + self.config.num_draft_tokens),
            num_decodes=num_decodes,
            stalled=[request.id for request in stalled],
            started=started,
            finished=[request.id for request in finished],
        )

    def _finished(self, event: Finished) -> None:
        """FastDeploy: `ResourceManagerV1.finish_requests`; a request that waits cannot finish there."""
        request = self._state.requests[event.request_id]
        if request.status not in (Status.WAITING, Status.REQUEUED):
            self._state.finish(request)

    def _rescheduled(self, event: Rescheduled) -> None:
        self._state.reschedule(self._state.preempted[event.request_id])

    def _recycled(self, event: Recycled) -> None:
        self._state.recycle(self._state.aborting[event.request_id])
