"""The figures of one call of vLLM's `Scheduler.schedule()`. They are read right after it, and nothing is changed."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from . import wire

QUEUES = ("kv_holding_waiting", "waiting", "skipped_waiting")
"""Names of the queues of waiting requests in the versions of `Scheduler`, in the order in which they are served."""


class EndedCall(NamedTuple):
    """One `schedule()` whose frame is not written yet: its output, when it began and ended (UTC ns), how long it took,
    and how many requests were decoding and prefilling before it.
    """

    output: Any
    ts: int
    duration_us: int
    decodes: int
    prefilling: int
    ended_at: int


class CallChanges(Protocol):
    """What a call changed: requests that it prefills, that joined the batch, and that got new blocks."""

    prefills: list[Any]
    joined: list[Any]
    blocks: list[Any]


def queues(scheduler: Any) -> list[Any]:
    """The queues of this version that have waiting requests."""
    return [queue for name in QUEUES if (queue := getattr(scheduler, name, None))]


def head_of(waiting: list[Any]) -> Any:
    """The request that is served next from these `queues`; None if none waits."""
    if not waiting:
        return None
    return waiting[0].peek_request() if hasattr(waiting[0], "peek_request") else waiting[0][0]


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


def of_call(
    scheduler: Any,
    ended: EndedCall,
    call: CallChanges | None,
    queued: list[Any],
    preempted: int,
    numbers: dict[str, int],
) -> tuple[str, wire.CallFigures]:
    """Why the head of the queues was not admitted, and the call's figures.

    `call`: what the call changed; None: it handed out nothing. `queued`: the `queues`. `numbers`: requests by id.
    """
    counted, budget = ended.output.total_num_scheduled_tokens, budget_of(scheduler)
    pool = scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    reason, missing, head = "", -1, head_of(queued)
    if head is not None:
        reason = not_admitted_reason(scheduler, head, budget - counted, preempted)
        missing = missing_blocks(scheduler, head, budget - counted, free) if reason == "blocks" else -1
    return reason, wire.CallFigures(
        token_budget=budget,
        num_scheduled_tokens=counted,
        num_running=len(scheduler.running),
        num_running_decodes=max(ended.decodes, 0),
        num_prefilling=ended.prefilling,
        num_waiting=sum(map(len, queued)),
        num_deferred=num_deferred(scheduler),
        num_chunks=0 if call is None else len(call.prefills),
        num_admitted=0 if call is None else len(call.joined),
        num_extended=0 if call is None else len(call.blocks),
        num_preempted=preempted,
        num_aborted=0,
        num_free_blocks=free,
        num_blocks=pool.num_gpu_blocks,
        num_missing_blocks=missing,
        head=-1 if head is None else numbers.get(head.request_id, -1),
    )


def not_admitted_reason(scheduler: Any, head: Any, remaining_budget: int, preempted: int) -> str:
    """Which rule ended the loop of `schedule()` over the waiting requests. The rules are in the order of that loop."""
    paused = getattr(getattr(scheduler, "_pause_state", None), "name", "UNPAUSED") != "UNPAUSED"
    too_long = not _chunked(scheduler) and head.num_tokens - head.num_computed_tokens > remaining_budget
    rules = (
        ("preemption", preempted > 0),
        ("other", paused),
        ("budget", remaining_budget <= 0),
        ("slots", _slots_taken(scheduler) >= _slots(scheduler)),
        ("other", head.status.name.startswith("WAITING_FOR") or _no_room_for_adapter(scheduler, head)),
        ("budget", too_long),
    )
    return next((reason for reason, holds in rules if holds), "blocks")


def _slots(scheduler: Any) -> int:
    return int(getattr(scheduler, "max_num_active_reqs", scheduler.max_num_running_reqs))


def _slots_taken(scheduler: Any) -> int:
    return len(scheduler.running) + int(getattr(scheduler, "num_waiting_for_streaming_input", 0))


def _chunked(scheduler: Any) -> bool:
    config = scheduler.scheduler_config
    return bool(
        getattr(config, "enable_chunked_prefill", True) or getattr(config, "chunked_prefill_enabled", False)
    )


def _no_room_for_adapter(scheduler: Any, head: Any) -> bool:
    """Whether the head must wait for a LoRA slot: other adapters hold all slots."""
    lora = getattr(scheduler, "lora_config", None)
    wanted = getattr(head, "lora_request", None)
    if lora is None or wanted is None:
        return False
    used = {r.lora_request.lora_int_id for r in scheduler.running if r.lora_request}
    return len(used) >= lora.max_loras and wanted.lora_int_id not in used


def missing_blocks(scheduler: Any, head: Any, remaining_budget: int, free: int) -> int:
    """KV blocks that the head lacks; -1 if that depends on what the prefix cache would have found."""
    if scheduler.cache_config.enable_prefix_caching or len(_managers(scheduler)) != 1:
        return -1
    tokens = head.num_tokens
    if not getattr(scheduler, "scheduler_reserve_full_isl", False):
        tokens = min(tokens, remaining_budget)
    wanted = -(-tokens // scheduler.block_size)
    return wanted - free if wanted > free else -1


def _managers(scheduler: Any) -> Any:
    manager = scheduler.kv_cache_manager
    return getattr(getattr(manager, "coordinator", manager), "single_type_managers", ())


def blocks_of(scheduler: Any, request_id: str) -> int:
    """KV blocks that a request holds, in all groups of layers."""
    return sum(len(manager.req_to_blocks.get(request_id, ())) for manager in _managers(scheduler))


def new_blocks(output: Any) -> list[tuple[str, int]]:
    """Requests that went on and got new blocks, and how many each got."""
    cached = output.scheduled_cached_reqs
    return [
        (request_id, sum(map(len, blocks)))
        for request_id, blocks in zip(cached.req_ids, cached.new_block_ids)
        if blocks and any(blocks)
    ]
