"""The scheduler model: events in, decisions out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, overload

from fdtrace.replayer.config import ORIGINAL, Policy, SchedulerConfig
from fdtrace.replayer.formulas.base import Formula
from fdtrace.replayer.formulas.variables import Variables
from fdtrace.replayer.model.block_pool import BlockPool
from fdtrace.replayer.model.block_reserve import Reserve, reserve_of
from fdtrace.replayer.model.decoding import PREEMPTED_OR_ABORTED
from fdtrace.replayer.model.events import (
    SCHEDULE,
    Aborted,
    Arrived,
    Decision,
    DecodeTokenCounts,
    Discarded,
    Emitted,
    Event,
    Finished,
    Forward,
    Forwarded,
    Freed,
    Joined,
    Left,
    Notification,
    OutputCached,
    Preallocate,
    Ready,
    Recycled,
    Rescheduled,
    Resumed,
    Schedule,
)
from fdtrace.replayer.model.formula_rules import request_rules
from fdtrace.replayer.model.found_events import (
    LeavingAtStart,
    Preallocated,
    PrefixCacheAtStart,
    ReserveAtStart,
    SlotLost,
)
from fdtrace.replayer.model.prefix_cache import PrefixCache
from fdtrace.replayer.model.request import RUNNING, AcceptancePlan, Request, Status
from fdtrace.replayer.model.roles import join, preallocate, preallocate_recorded
from fdtrace.replayer.model.schedule_rules import SchedulingCall
from fdtrace.replayer.model.scheduler_queries import SchedulerQueries
from fdtrace.replayer.model.state import (
    State,
    discard,
    free,
    leave,
    resume,
    resume_leaving,
    resume_preallocated,
    resume_preempted_or_aborted,
)

_CANNOT_FINISH: Final = (Status.ASKING, Status.PREALLOCATED, Status.WAITING, Status.REQUEUED)


def _pool(config: SchedulerConfig, policy: Policy) -> BlockPool:
    """In the decode role FastDeploy frees blocks without the prefix cache: `ResourceManagerV1._free_blocks`."""
    if config.prefix_caching and config.role != "decode":
        return PrefixCache(config.num_blocks, config.block_size, cache_once=policy.cache_once)
    return BlockPool(config.num_blocks)


class Scheduler(SchedulerQueries):
    """A model of FastDeploy's V1 scheduler under a budget formula and a policy.

    `apply` is the only way to change it. A live engine drives it like this:

        decision = scheduler.apply(Schedule())
        ... run decision.chunks, and one decode step of each of scheduler.decodes() ...
        scheduler.apply(Emitted({request_id: tokens emitted}))
        scheduler.apply(Finished(id)) for each finished request, Rescheduled(id) for each of decision.preempted,
        Recycled(id) for each of decision.aborted

    A replay knows the acceptances beforehand. It sends `Forwarded()` in place of `Emitted` and `Finished`. With
    `explain`, each decision carries its reasons.

    In the prefill and decode roles an arrived request first gets a slot and blocks (`Preallocate`). It runs when the
    other instance is ready (`Joined`); otherwise it is `Discarded`. A prefill instance emits one token for each
    request and frees the request when its KV cache is sent: it needs `Finished`, also after `Forwarded`. A decode
    instance has no `Rescheduled`: a request that it preempts is lost.
    """

    explains = True
    keeps_rows = False
    engine: str | None = None

    def __init__(
        self, config: SchedulerConfig, formula: Formula, policy: Policy = ORIGINAL, *, explain: bool = True
    ) -> None:
        self.config, self.formula, self.policy, self.explain = config, formula, policy, explain
        self.num_calls = 0
        self._state = State(config, policy, _pool(config, policy))
        self._reserve = reserve_of(config, policy)
        self._call = SchedulingCall(self._state, policy, self._reserve)
        self._variables = Variables.of(config)
        self._call.rules = request_rules(config, formula, self._variables)
        self._chunks: list[tuple[str, int, int]] = []
        self._handlers: dict[type[Any], Callable[[Any], Any]] = {
            Arrived: self._arrived,
            Preallocate: self._preallocate,
            Preallocated: partial(_take_preallocated, self._state),
            Joined: self._joined,
            Discarded: self._discarded,
            Resumed: partial(_take_resumed, self._state),
            ReserveAtStart: partial(_begin_reserve, self._reserve),
            PrefixCacheAtStart: self._state.pool.found,
            SlotLost: partial(_lose_slot, self._state),
            LeavingAtStart: partial(_leaving_found, self._state),
            Ready: self._ready,
            Aborted: self._aborted,
            Schedule: self._schedule,
            Emitted: self._emitted,
            Forwarded: self._forwarded,
            DecodeTokenCounts: partial(_take_known, self._state),
            OutputCached: partial(_cache_output, self._state),
            Finished: self._finished,
            Left: partial(_take_left, self._state),
            Freed: partial(_take_freed, self._state),
            Rescheduled: self._rescheduled,
            Recycled: self._recycled,
        }

    @overload
    def apply(self, event: Schedule) -> Decision: ...
    @overload
    def apply(self, event: Forwarded) -> Forward: ...
    @overload
    def apply(self, event: Preallocate) -> list[str]: ...
    @overload
    def apply(self, event: Notification) -> None: ...
    def apply(self, event: Event) -> Decision | Forward | list[str] | None:
        """Take one event.

        Args:
            event: what happened, or what is to be done.

        Returns:
            For `Schedule` the call's `Decision`; for `Forwarded` what the forward ran; for `Preallocate` the ids of
            the requests that got their blocks; else None.

        Raises:
            KeyError: the event names a request that does not exist, or whose state does not allow the event.
            SchedulerFailed: FastDeploy's scheduler would raise here.
        """
        return self._handlers[type(event)](event)  # type: ignore[no-any-return]

    # Events -------------------------------------------------------------------------------------------------

    def _arrived(self, event: Arrived) -> None:
        if event.request_id in self._state.requests:
            raise KeyError(f"request {event.request_id!r} is already there")
        request = _request_of(self.config, event)
        if self.config.role == "mixed":
            self._state.arrive(request)
        else:
            self._state.ask(request)

    def _preallocate(self, event: Preallocate) -> list[str]:
        return preallocate(self._state, self._reserve)

    def _joined(self, event: Joined) -> None:
        join(self._state, self._state.preallocated[event.request_id])

    def _discarded(self, event: Discarded) -> None:
        """FastDeploy: `ResourceManagerV1.pre_recycle_resource`."""
        discard(self._state, self._state.preallocated[event.request_id])

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
        call = self._call
        if event is not SCHEDULE:
            self._take_as_recorded(event)
        call.run(decision, charge=charge, explain=self.explain)
        self._chunks = decision.chunks
        counted = decision.token_budget - call.budget
        if charge == 0:  # such a formula has subtracted the decodes' tokens from the budget already
            counted += self.config.max_num_batched_tokens - decision.token_budget
        decision.num_scheduled_tokens = counted
        if event is not SCHEDULE:
            decision.num_reserve_faults, self._reserve.num_faults = self._reserve.num_faults, 0
            self._take_as_recorded(SCHEDULE)
        decision.num_running = len(state.running)
        decision.num_waiting = len(state.waiting)
        decision.num_free_blocks = state.pool.num_free
        return decision

    def _take_as_recorded(self, event: Schedule) -> None:
        """Let the call use the recorded values of an event in place of the model's own."""
        self._call.not_ready, self._call.failed = event.not_ready, event.failed
        self._reserve.recorded_thresholds = list(event.needed_blocks[::-1])

    def _emitted(self, event: Emitted) -> None:
        for request_id, num_tokens in event.num_tokens.items():
            request = self._state.requests.get(request_id)
            if request is not None:
                self._state.emit(request, num_tokens)

    def _forwarded(self, event: Forwarded) -> Forward:
        """One forward: each chunk runs whole; each decode runs 1 + K tokens unless it is stalled (`is_block_step`).

        The first decode of a request on a decode instance has at most one draft.
        """
        state, config = self._state, self.config
        stalled = state.stalled()
        num_decodes = len(state.decoding) - len(stalled)
        num_tokens = num_decodes * (1 + config.num_draft_tokens)
        if state.first_decodes:
            num_missing_drafts = config.num_draft_tokens - config.num_draft_tokens_of(first=True)
            num_tokens -= len(state.first_decodes) * num_missing_drafts
        forward = Forward(0, num_tokens, num_decodes, [request.id for request in stalled], [], [])
        done = state.forward(stalled)
        if config.role != "decode":
            done = [*_prefilled(state, self._chunks, forward), *done]
        self._chunks = []
        for request in done:
            forward.finished.append(request.id)
            state.finish(request)
        return forward

    def _finished(self, event: Finished) -> None:
        """FastDeploy: `ResourceManagerV1.finish_requests`. It does not finish a waiting request."""
        request = self._state.requests[event.request_id]
        if request.status not in _CANNOT_FINISH:
            self._state.finish(request)

    def _rescheduled(self, event: Rescheduled) -> None:
        self._state.reschedule(self._state.preempted[event.request_id])

    def _recycled(self, event: Recycled) -> None:
        self._state.recycle(self._state.aborting[event.request_id])


def _request_of(config: SchedulerConfig, event: Arrived) -> Request:
    plan = None
    if event.accepts is not None:
        if event.num_output_tokens is None:
            raise KeyError(f"request {event.request_id!r}: `accepts` without `num_output_tokens`")
        plan = AcceptancePlan(event.accepts, event.num_output_tokens, event.sums)
    max_tokens = event.max_tokens
    if max_tokens is None:  # as in `_get_running_request_reserve_blocks` of release 2.6
        max_tokens = config.max_model_len - event.num_prompt_tokens
    request = Request(event.request_id, event.num_prompt_tokens, max_tokens, event.ready, plan)
    request.block_key = event.block_key
    return request


def _take_resumed(state: State, event: Resumed) -> None:
    request = _request_of(state.config, event.arrived)
    request.emitted, request.forwards = event.num_emitted_tokens, event.num_forwards
    request.need_prefill = event.num_prefill_tokens or request.need_prefill
    if event.place == "preallocated":
        resume_preallocated(state, request, event.num_computed_tokens, event.num_blocks, event.leaf)
    elif event.place == "running":
        resume(state, request, event.num_computed_tokens, event.num_blocks, event.leaf)
    else:
        resume_preempted_or_aborted(state, request, Status(event.place))


def _prefilled(state: State, chunks: list[tuple[str, int, int]], forward: Forward) -> list[Request]:
    """Run the chunks of a forward: each prefill that is complete emits a token. Returns the finished requests."""
    requests, done = state.requests, []
    for request_id, start, end in chunks:
        forward.num_prefill_tokens += end - start
        request = requests[request_id]
        if end < request.need_prefill:
            continue
        state.emit(request, 1)
        plan = request.plan
        assert plan is not None, f"the output of {request_id} is not known beforehand"
        if request.emitted + plan.after(request.forwards) < plan.output or state.config.role == "prefill":
            forward.started.append(request_id)
        else:
            done.append(request)
    return done


def _take_known(state: State, event: DecodeTokenCounts) -> None:
    for request_id, num_total in event.num_total_tokens.items():
        request = state.requests.get(request_id)
        if request is None:
            continue
        decodes = request.status in RUNNING and request.computed >= request.need_prefill
        num_new = num_total - state.total(request)
        if num_new > 0 and (decodes or request.status in PREEMPTED_OR_ABORTED):
            state.emit(request, num_new)


def _cache_output(state: State, event: OutputCached) -> None:
    _take_known(state, DecodeTokenCounts({event.request_id: event.num_total_tokens}))
    request = state.requests.get(event.request_id)
    if not state.config.output_caching or request is None or request.computed < request.need_prefill:
        return
    state.pool.output_cached(request, event.num_total_tokens)


def _take_preallocated(state: State, event: Preallocated) -> None:
    preallocate_recorded(state, event.request_id)


def _begin_reserve(reserve: Reserve, event: ReserveAtStart) -> None:
    reserve.begin(event.value, relaxed=event.relaxed)


def _lose_slot(state: State, event: SlotLost) -> None:
    state.num_lost_slots += 1


def _leaving_found(state: State, event: LeavingAtStart) -> None:
    resume_leaving(state, Request(event.request_id, 0, 0, True, None), event.num_blocks, event.leaf)


def _take_left(state: State, event: Left) -> None:
    """FastDeploy: the first section of the lock in `ResourceManagerV1.finish_requests`."""
    request = state.requests[event.request_id]
    if request.status in RUNNING:
        leave(state, request)
    elif request.status not in _CANNOT_FINISH:
        state.finish(request)


def _take_freed(state: State, event: Freed) -> None:
    """FastDeploy: the second section of the lock there."""
    request = state.leaving.get(event.request_id)
    if request is not None:
        free(state, request)
