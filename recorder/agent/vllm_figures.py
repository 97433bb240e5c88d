"""The figures of one call of vLLM's `Scheduler.schedule()`. They are read right after it, and nothing is changed."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from . import vllm_reasons as reasons
from .vllm_reasons import BudgetsLeft, CallRules, LoopStop, RunningPart
from .vllm_resting import CallBudgets

QUEUES = ("kv_holding_waiting", "waiting", "skipped_waiting")
"""Names of the queues of waiting requests in the versions of `Scheduler`, in the order in which they are served."""


class EndedCall(NamedTuple):
    """One `schedule()` whose frame is not written yet: its output, when it began and ended (UTC ns), how long it took,
    how many requests were decoding and prefilling before it, and whether it deferred prefills.
    """

    output: Any
    ts: int
    duration_us: int
    decodes: int
    prefilling: int
    ended_at: int
    throttled: bool


class CallChanges(Protocol):
    """What a call changed: requests that it prefills (`starts` by id), that joined the batch, and that got blocks."""

    prefills: list[Any]
    starts: dict[str, int]
    joined: list[Any]
    blocks: list[Any]


def queues(scheduler: Any) -> list[Any]:
    """The queues of this version that have waiting requests."""
    return [queue for name in QUEUES if (queue := getattr(scheduler, name, None))]


def num_deferred(scheduler: Any) -> int:
    """Waiting requests that the call passed over because they are not ready; -1: this version keeps no such queue."""
    for name in ("skipped_waiting", "deferred_waiting"):
        queue = getattr(scheduler, name, None)
        if queue is not None:
            return len(queue)
    return -1


def budget_of(scheduler: Any) -> int:
    """Tokens that a call may hand out: 0 while the scheduler is paused."""
    if getattr(getattr(scheduler, "_pause_state", None), "name", "") == "PAUSED_ALL":
        return 0
    return int(scheduler.max_num_scheduled_tokens)


def budgets_of(scheduler: Any, rules: CallRules, throttled: bool) -> CallBudgets:
    """What a call could hand out."""
    inputs = scheduler.scheduler_config.max_num_batched_tokens if rules.input_budget else NO_LIMIT
    return CallBudgets(budget_of(scheduler), inputs, rules.draft_slots, throttled)


def of_call(
    scheduler: Any,
    ended: EndedCall,
    call: CallChanges | None,
    queued: list[Any],
    preempted: int,
    numbers: dict[str, int],
    rules: CallRules,
) -> tuple[str, tuple[int, ...]]:
    """Why the head of the queues was not admitted, and the call's figures in the order of `wire.CallFigures`.

    `call`: what the call changed; None: it handed out nothing. `queued`: the `queues`. `numbers`: requests by id.
    """
    counted, budget = ended.output.total_num_scheduled_tokens, budget_of(scheduler)
    pool = scheduler.kv_cache_manager.block_pool
    free, slots = pool.get_num_free_blocks(), rules.draft_slots
    inputs = counted_inputs = -1
    if rules.input_budget:
        inputs = scheduler.scheduler_config.max_num_batched_tokens
        counted_inputs = counted + slots * len(ended.output.num_scheduled_tokens)
    stop = NOBODY
    if queued:
        left = BudgetsLeft(
            budget - counted, inputs - counted_inputs if rules.input_budget else NO_LIMIT, slots, free
        )
        stop = reasons.stop_of(scheduler, queued, left, _ran(ended, call, preempted), rules)
    return stop.reason, (  # a plain tuple in the order of `wire.CallFigures`, which takes 10 us longer cold
        budget,  # token_budget
        counted,  # num_scheduled_tokens
        len(scheduler.running),  # num_running
        ended.decodes if ended.decodes > 0 else 0,  # num_running_decodes
        ended.prefilling,  # num_prefilling
        sum(map(len, queued)) if queued else 0,  # num_waiting
        num_deferred(scheduler),  # num_deferred
        -1,  # num_preallocated
        0 if call is None else len(call.prefills),  # num_chunks
        0 if call is None else len(call.joined),  # num_admitted
        0 if call is None else len(call.blocks),  # num_extended
        preempted,  # num_preempted
        0,  # num_aborted
        free,  # num_free_blocks
        pool.num_gpu_blocks,  # num_blocks
        stop.missing_blocks,  # num_missing_blocks
        -1 if stop.head is None else numbers.get(stop.head.request_id, -1),  # head
        -1,  # reservation
        -1,  # cache_read_budget
        -1,  # num_cache_read_tokens
        inputs,  # input_budget
        counted_inputs,  # num_input_tokens
    )


NOBODY = LoopStop(None, "")
NO_LIMIT = 1 << 31
"""Stands for what is left of a budget that this version does not have."""


def _ran(ended: EndedCall, call: CallChanges | None, preempted: int) -> RunningPart:
    """What the call did with the running requests, before it came to the waiting ones."""
    if call is None:
        return RunningPart(0, 0, ended.throttled, preempted)
    joined = {row.request_id for _, row in call.joined}
    prefills = sum(request_id not in joined for request_id in call.starts)
    scheduled = len(ended.output.num_scheduled_tokens) - len(joined)
    return RunningPart(scheduled, prefills, ended.throttled, preempted)


def new_blocks(output: Any) -> list[tuple[str, int]]:
    """Requests that went on and got new blocks, and how many each got."""
    cached = output.scheduled_cached_reqs
    return [
        (request_id, sum(map(len, blocks)))
        for request_id, blocks in zip(cached.req_ids, cached.new_block_ids)
        if blocks and any(blocks)
    ]
