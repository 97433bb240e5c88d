"""Why vLLM's `Scheduler.schedule()` admitted no more of the waiting requests (v1/core/sched/scheduler.py).

The rules are those of its loop over the waiting requests, in their order. They are applied right after the call: the
request at which the loop stopped found the queues, the budgets and the free blocks as the call left them.
"""

from __future__ import annotations

from typing import Any, Iterable, NamedTuple


class CallRules(NamedTuple):
    """Which rules this version's `schedule()` has. They are recognised by the names of its variables.

    `input_budget`: it holds a second budget, of tokens and draft slots. `pads`: it pads a new decode to 1 + K tokens.
    `draft_slots`: tokens of the second budget that each scheduled request pays for its drafter.
    """

    input_budget: bool
    pads: bool
    draft_slots: int


class BudgetsLeft(NamedTuple):
    """What a call left: tokens of both budgets (`inputs`: a large number if there is no such budget), and free blocks.

    `draft_slots`: tokens of the input budget that each further request would pay besides its own.
    """

    tokens: int
    inputs: int
    draft_slots: int
    blocks: int

    @property
    def room(self) -> int:
        """Tokens that one more request could get."""
        return min(self.tokens, self.inputs - self.draft_slots)


class LoopStop(NamedTuple):
    """Where the loop stopped: the request, the reason (one of `wire.NOT_ADMITTED`), and the blocks that it lacked; -1:
    not known.
    """

    head: Any
    reason: str
    missing_blocks: int = -1


class RunningPart(NamedTuple):
    """What a call did before it came to the waiting requests: how many running requests it scheduled, and of these, how
    many in their prefill. `throttled`: it deferred prefills to balance data-parallel ranks.
    """

    scheduled: int
    prefills: int
    throttled: bool
    preempted: int


def rules_of(scheduler: Any) -> CallRules:
    """The rules of this scheduler's version."""
    names: set[str] = set()
    for cls in type(scheduler).__mro__:
        method = vars(cls).get("schedule")
        code = getattr(getattr(method, "__wrapped__", method), "__code__", None)
        names.update(getattr(code, "co_varnames", ()))
    has_input_budget = "input_budget" in names
    return CallRules(
        has_input_budget, "pad_spec_decode" in names, draft_slots(scheduler) if has_input_budget else 0
    )


def draft_slots(scheduler: Any) -> int:
    """Tokens of the input budget that each scheduled request pays for its drafter."""
    speculation = scheduler.vllm_config.speculative_config
    return 0 if speculation is None else int(getattr(speculation, "max_num_new_slots_for_drafting", 0))


def throttles(scheduler: Any, args: Any, kwargs: Any) -> bool:
    """Whether the call that begins now defers prefills: `defer_prefills` of `schedule(throttle_prefills)`."""
    asked = args[0] if args else kwargs.get("throttle_prefills", False)
    return (
        bool(asked)
        and not getattr(scheduler, "prefill_capacity_bound", False)
        and any(not getattr(request, "is_prefill_chunk", False) for request in scheduler.running)
    )


def pause_of(scheduler: Any) -> str:
    """`UNPAUSED`, `PAUSED_NEW` (nobody is admitted) or `PAUSED_ALL` (nothing runs)."""
    return getattr(getattr(scheduler, "_pause_state", None), "name", "UNPAUSED")


# Requests that are passed over ------------------------------------------------------------------------------


def passed_over(scheduler: Any, request: Any) -> str:
    """Why the loop passes over a request as not ready; empty: it does not."""
    status = request.status.name
    if status.startswith("WAITING_FOR_"):
        return str(status[len("WAITING_FOR_") :].lower())
    if _no_room_for_adapter(scheduler, request):
        return "lora"
    deferred = getattr(scheduler, "deferred_waiting", None)
    if deferred is None or request not in deferred:
        return ""
    if getattr(request, "num_stale_output_tokens", 0) and not getattr(request, "drop_stale_output", False):
        return "stale_output"
    return "kv_connector" if getattr(scheduler, "connector", None) is not None else "encoder_cache"


def not_ready(scheduler: Any, queued: list[Any]) -> dict[str, str]:
    """Requests that the loop passed over, as far as this version keeps them apart, and the first of the queues."""
    requests: list[Any] = list(getattr(scheduler, "deferred_waiting", None) or ())
    requests += getattr(scheduler, "skipped_waiting", None) or ()
    if queued:
        requests.append(first_of(queued[0]))
    reasons = {request.request_id: passed_over(scheduler, request) for request in requests}
    return {request_id: reason for request_id, reason in reasons.items() if reason}


def first_of(queue: Any) -> Any:
    """The request of a queue that is served next."""
    return queue.peek_request() if hasattr(queue, "peek_request") else queue[0]


def _in_order(queued: list[Any]) -> Iterable[Any]:
    """The waiting requests. The first is found without a look at the others: a queue by priority is a heap."""
    for queue in queued:
        head = first_of(queue)
        yield head
        yield from (request for request in queue if request is not head)


def _no_room_for_adapter(scheduler: Any, request: Any) -> bool:
    """Whether a request must wait for a LoRA slot: other adapters hold all slots."""
    lora = getattr(scheduler, "lora_config", None)
    wanted = getattr(request, "lora_request", None)
    if lora is None or wanted is None:
        return False
    used = {r.lora_request.lora_int_id for r in scheduler.running if r.lora_request}
    return len(used) >= lora.max_loras and wanted.lora_int_id not in used


# The rules --------------------------------------------------------------------------------------------------


def stop_of(
    scheduler: Any, queued: list[Any], left: BudgetsLeft, ran: RunningPart, rules: CallRules
) -> LoopStop:
    """Where the loop over the waiting requests stopped, and why. `queued`: the queues that have requests, in order."""
    pause = pause_of(scheduler)
    held = getattr(scheduler, "kv_holding_waiting", None)
    open_queues = queued if pause == "UNPAUSED" else [held] if held else []
    head = next((r for r in _in_order(open_queues) if not passed_over(scheduler, r)), None)
    first = first_of(queued[0]) if head is None else head
    closed = pause != "UNPAUSED" and not held
    reason = _before_any(scheduler, left, ran, pause, closed)
    if reason:
        return LoopStop(first, reason)
    if head is None:
        return LoopStop(first, "deferred" if pause == "UNPAUSED" else "paused")
    reason = _of_budgets(scheduler, head, left, ran, rules)
    return LoopStop(head, reason) if reason else LoopStop(head, *_of_blocks(scheduler, head, left))


def _before_any(scheduler: Any, left: BudgetsLeft, ran: RunningPart, pause: str, closed: bool) -> str:
    """The rules that come before a look at any request. `closed`: the pause leaves no queue to serve."""
    rules = (
        ("preemption", ran.preempted > 0),
        ("paused", pause == "PAUSED_ALL"),
        ("budget", left.tokens <= 0),
        ("paused", closed),
        ("input_budget", left.inputs <= left.draft_slots),
        ("slots", _slots_taken(scheduler) >= _slots(scheduler)),
    )
    return next((reason for reason, holds in rules if holds), "")


def _of_budgets(scheduler: Any, head: Any, left: BudgetsLeft, ran: RunningPart, rules: CallRules) -> str:
    """The rules of one request before it asks for blocks."""
    if ran.throttled and cached_tokens(scheduler, head)[1] < head.num_tokens - 1:
        return "throttle"
    if rules.pads and _does_not_fit_padded(scheduler, head, left, ran):
        return "padding"
    if not chunked(scheduler):
        tokens = head.num_tokens - cached_tokens(scheduler, head)[1]
        longest = getattr(scheduler.scheduler_config, "long_prefill_token_threshold", 0)
        tokens = min(tokens, longest) if longest else tokens
        if tokens > left.room:
            return "budget" if tokens > left.tokens else "input_budget"
    return ""


def _does_not_fit_padded(scheduler: Any, head: Any, left: BudgetsLeft, ran: RunningPart) -> bool:
    padded = 1 + int(scheduler.num_spec_tokens)
    if padded == 1 or padded <= left.room or getattr(scheduler, "dynamic_sd_lookup", None) is not None:
        return False
    sampled, cached = getattr(scheduler, "num_sampled_tokens_per_step", 1), cached_tokens(scheduler, head)[1]
    return (
        sampled > 0
        and head.num_tokens - cached == 1
        and not ran.prefills
        and (ran.scheduled > 0 or cached > 0)
        and cached + padded + sampled <= scheduler.max_model_len
    )


def _of_blocks(scheduler: Any, head: Any, left: BudgetsLeft) -> tuple[str, int]:
    """Which of the rules about KV blocks stopped a request, and the blocks that it lacked.

    With the prefix cache, what it would have found is looked up only if there is a watermark: the answer depends on it.
    """
    manager = scheduler.kv_cache_manager
    watermark = int(getattr(manager, "watermark_blocks", 0)) if scheduler.running else 0
    if len(managers(scheduler)) != 1 or (scheduler.cache_config.enable_prefix_caching and not watermark):
        return "blocks", -1
    wanted = _wanted_blocks(scheduler, head, left)
    if wanted > left.blocks:
        return "blocks", wanted + watermark - left.blocks
    if wanted + watermark > left.blocks:
        return "watermark", wanted + watermark - left.blocks
    return "other", -1  # alignment of its chunk, its encoder inputs


def _wanted_blocks(scheduler: Any, head: Any, left: BudgetsLeft) -> int:
    """KV blocks that a request asks for: those of its next chunk, or of its whole prompt if these are reserved."""
    hits, cached = cached_tokens(scheduler, head)
    tokens = min(head.num_tokens, cached + left.room) + int(getattr(scheduler, "num_lookahead_tokens", 0))
    tokens = min(tokens, scheduler.max_model_len)
    if getattr(scheduler, "scheduler_reserve_full_isl", False):
        tokens = max(tokens, min(head.num_tokens, scheduler.max_model_len))
    unheld = sum(not getattr(block, "ref_cnt", 1) for block in hits)  # free ones that it would take
    held = blocks_of(scheduler, head.request_id)
    more = -(-tokens // int(scheduler.block_size)) - len(hits) - held
    return max(0, int(more)) + unheld


def cached_tokens(scheduler: Any, request: Any) -> tuple[list[Any], int]:
    """The blocks that the prefix cache has for a waiting request, and the tokens that it has computed with these."""
    computed = int(request.num_computed_tokens)
    hashes = getattr(request, "block_hashes", None)
    if computed or not hashes or not scheduler.cache_config.enable_prefix_caching:
        return [], computed
    if getattr(request, "skip_reading_prefix_cache", False):
        return [], 0
    coordinator = getattr(scheduler.kv_cache_manager, "coordinator", None)
    find = getattr(coordinator, "find_longest_cache_hit", None)
    if find is None:
        return [], 0
    blocks, num_tokens = find(hashes, request.num_tokens - 1)[:2]
    return [block for group in blocks for block in group], int(num_tokens)


def chunked(scheduler: Any) -> bool:
    """Whether prompts may be prefilled in chunks."""
    config = scheduler.scheduler_config
    return bool(
        getattr(config, "enable_chunked_prefill", True) or getattr(config, "chunked_prefill_enabled", False)
    )


def _slots(scheduler: Any) -> int:
    return int(getattr(scheduler, "max_num_active_reqs", scheduler.max_num_running_reqs))


def _slots_taken(scheduler: Any) -> int:
    return len(scheduler.running) + int(getattr(scheduler, "num_waiting_for_streaming_input", 0))


def managers(scheduler: Any) -> Any:
    """The managers of the KV blocks of each group of layers."""
    manager = scheduler.kv_cache_manager
    return getattr(getattr(manager, "coordinator", manager), "single_type_managers", ())


def blocks_of(scheduler: Any, request_id: str) -> int:
    """KV blocks that a request holds, in all groups of layers."""
    return sum(len(manager.req_to_blocks.get(request_id, ())) for manager in managers(scheduler))
