"""The figures of one call of vLLM's `Scheduler.schedule()`, read right after it: nothing here changes anything."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from . import wire

QUEUES = ("kv_holding_waiting", "waiting", "skipped_waiting")
"""Names that versions of `Scheduler` give to the queues of requests that wait, in the order of service."""


class EndedCall(NamedTuple):
    """One `schedule()` whose frame is not written yet: what it gave, when it began and ended (UTC ns), how long it
    took, and how many requests decoded and were in their prefill before it.
    """

    output: Any
    ts: int
    duration_us: int
    decodes: int
    prefilling: int
    ended_at: int


class CallChanges(Protocol):
    """What a call changed: requests that it prefills, that joined the batch, and that got blocks."""

    prefills: list[Any]
    joined: list[Any]
    blocks: list[Any]


def queues(scheduler: Any) -> list[Any]:
    """The queues of this version in which a request waits."""
    return [queue for name in QUEUES if (queue := getattr(scheduler, name, None))]


def head_of(waiting: list[Any]) -> Any:
    """The request that is served next, of `queues`; None where none waits."""
    if not waiting:
        return None
    return waiting[0].peek_request() if hasattr(waiting[0], "peek_request") else waiting[0][0]


def num_deferred(scheduler: Any) -> int:
    """Requests that wait and that the call passed over, as they are not ready; -1: this version does not keep them."""
    for name in ("skipped_waiting", "deferred_waiting"):
        queue = getattr(scheduler, name, None)
        if queue is not None:
            return len(queue)
    return -1


def budget_of(scheduler: Any) -> int:
    """Tokens that a call may hand out: nothing while the scheduler is paused."""
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
    """Why the head of the `queues` (`queued`) was not admitted, and the call's figures. `call`: what it changed, None:
    it handed out nothing; `numbers`: requests by id.
    """
    counted, budget = ended.output.total_num_scheduled_tokens, budget_of(scheduler)
    pool = scheduler.kv_cache_manager.block_pool
    free = pool.get_num_free_blocks()
    reason, missing, head = "", -1, head_of(queued)
    if head is not None:
        reason = why_waiting(scheduler, head, budget - counted, preempted)
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


def why_waiting(scheduler: Any, head: Any, left: int, preempted: int) -> str:
    """The rule of `schedule()` that ended its loop over the waiting requests, in the order in which it asks."""
    paused = getattr(getattr(scheduler, "_pause_state", None), "name", "UNPAUSED") != "UNPAUSED"
    whole = not _chunked(scheduler) and head.num_tokens - head.num_computed_tokens > left
    rules = (
        ("preemption", preempted > 0),
        ("other", paused),
        ("budget", left <= 0),
        ("slots", _slots_taken(scheduler) >= _slots(scheduler)),
        ("other", head.status.name.startswith("WAITING_FOR") or _no_room_for_adapter(scheduler, head)),
        ("budget", whole),
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
    """Whether the head may wait for a LoRA slot: every slot is taken by another adapter."""
    lora = getattr(scheduler, "lora_config", None)
    wanted = getattr(head, "lora_request", None)
    if lora is None or wanted is None:
        return False
    used = {r.lora_request.lora_int_id for r in scheduler.running if r.lora_request}
    return len(used) >= lora.max_loras and wanted.lora_int_id not in used


def missing_blocks(scheduler: Any, head: Any, left: int, free: int) -> int:
    """KV blocks that the head lacked; -1 where that depends on what a prefix cache would have found."""
    if scheduler.cache_config.enable_prefix_caching or len(_managers(scheduler)) != 1:
        return -1
    tokens = head.num_tokens
    if not getattr(scheduler, "scheduler_reserve_full_isl", False):
        tokens = min(tokens, left)
    wanted = -(-tokens // scheduler.block_size)
    return wanted - free if wanted > free else -1


def _managers(scheduler: Any) -> Any:
    manager = scheduler.kv_cache_manager
    return getattr(getattr(manager, "coordinator", manager), "single_type_managers", ())


def blocks_of(scheduler: Any, request_id: str) -> int:
    """KV blocks that a request holds, in all groups of layers."""
    return sum(len(manager.req_to_blocks.get(request_id, ())) for manager in _managers(scheduler))


def new_blocks(output: Any) -> list[tuple[str, int]]:
    """Requests that went on and were given blocks, and how many."""
    cached = output.scheduled_cached_reqs
    return [
        (request_id, sum(map(len, blocks)))
        for request_id, blocks in zip(cached.req_ids, cached.new_block_ids)
        if blocks and any(blocks)
    ]
