"""The figures of one `schedule_batch()` of transformers, read right after it: nothing here changes anything."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

from . import transformers_config as config
from . import wire


class CallStart(NamedTuple):
    """The state when a call began: the time (`ts` UTC ns, `began` by the clock of durations), requests that decode,
    requests in their prefill, and the two budgets.
    """

    ts: int
    began: int
    decodes: int
    prefilling: int
    token_budget: int
    cache_budget: int


class HeadRefusal(NamedTuple):
    """Why the head of the queue stayed, its id, and the KV blocks that it lacked (-1: not known, or none)."""

    reason: str = ""
    head: str = ""
    missing_blocks: int = -1


class KVBlocks:
    """Reads the KV blocks of a `PagedAttentionCache` (cache.py), whichever version's."""

    def __init__(self, cache: Any) -> None:
        self.cache, self.managers = cache, config.managers_of(cache)
        self.pool: Any = getattr(cache, "pool", None)
        self.each = [getattr(manager, "blocks_per_sector", 1) for manager in self.managers]
        sectors = getattr(cache, "num_sectors", None)
        one_group = len(self.managers) == 1
        self.num_blocks = (
            int(sectors * self.each[0]) if one_group and sectors is not None else int(cache.num_blocks)
        )
        self.free: Callable[[], int] = self._free_share
        if hasattr(cache, "get_num_free_blocks"):
            self.free = cache.get_num_free_blocks
        elif one_group and self.pool is not None:
            self.free = self._free_of_one_group

    def _free_of_one_group(self) -> int:
        return int(
            self.pool.num_free_sectors * self.each[0] + self.pool.count_free_blocks(self.managers[0].index)
        )

    def _free_share(self) -> int:
        """For groups of layers with different block sizes: the free share of memory, as blocks of the whole model."""
        return int(self.cache.compute_free_capacity() * self.num_blocks)

    def of(self, request_id: str) -> int:
        """Blocks that a request holds, in all groups of layers."""
        return sum(len(manager.block_table.get(request_id, ())) for manager in self.managers)

    def missing(self, state: Any, tokens: int, free: int) -> int:
        """Blocks that its next tokens lack; -1: not known."""
        if len(self.managers) != 1:
            return -1
        size = getattr(self.managers[0], "tokens_per_page", None) or getattr(self.cache, "block_size", 0)
        if not size:
            return -1
        needed = -(-(state.position_offset + tokens) // size) - self.of(state.request_id)
        return needed - free if needed > free else -1


def head_of(scheduler: Any, offloads: bool) -> Any:
    """The waiting request that the scheduler looks at first. If the engine `offloads` to the CPU, offloaded requests
    go before new ones. None: nothing waits.
    """
    order, waiting = scheduler.waiting_requests_order, scheduler.waiting_requests
    first = next((waiting[name] for name in order if name in waiting), None)
    if not offloads or first is None or first.is_cpu_offloaded:
        return first
    return next(
        (waiting[name] for name in order if name in waiting and waiting[name].is_cpu_offloaded), first
    )


def num_waiting(scheduler: Any) -> int:
    """Requests that wait. In 5.13, one that found its prefix but no blocks runs, and is in `waiting_requests` too."""
    return len(scheduler.waiting_requests_order)


class CallResult(NamedTuple):
    """What a call returned: its batch (None: the cache is full), whether it reads by block table alone, its tokens, the
    KV cache tokens that it counted.
    """

    futures: Any
    fast: bool
    num_tokens: int
    cache_read: int


def ended(result: tuple[Any, ...]) -> CallResult:
    """The result that `schedule_batch` returned. Versions return 1 to 4 values."""
    futures, fast, tokens, read = (*result, False, 0, 0)[:4]
    return CallResult(futures, bool(fast), int(tokens), int(read))


def refusal(
    scheduler: Any, head: Any, blocks: KVBlocks, before: CallStart, end: CallResult, in_margin: bool | None
) -> HeadRefusal:
    """The first rule of `_process_candidates`, in its order, that the head of the queue did not pass.

    `in_margin`: whether the call found that the safety margin holds; None: this version checks it for each request.
    """
    if head is None:
        return HeadRefusal()
    free, ran = blocks.free(), len(end.futures or ())
    margin = scheduler.safety_margin * blocks.num_blocks
    left, reads_left = before.token_budget - end.num_tokens, before.cache_budget - end.cache_read
    unsafe = (free < margin) if in_margin is None else not in_margin
    limit = getattr(blocks.cache, "read_cache_limit", getattr(scheduler, "read_cache_limit", None))
    reads = head.position_offset if limit is None else min(head.position_offset, limit)
    rules = (
        ("preemption", getattr(scheduler, "block_new_requests", False)),
        ("budget", left <= 0),
        ("slots", ran >= getattr(scheduler, "max_requests_per_batch", 1 << 30)),
        ("cache_read", reads_left <= 0 and not end.fast),
        ("safety_margin", unsafe and ran > 0),
        ("cache_read", reads_left < reads),
    )
    reason = next((name for name, holds in rules if holds), "blocks")
    missing = -1
    if reason == "safety_margin":
        missing = max(int(-(-margin // 1)) - free, 1)
    elif reason == "blocks":
        missing = blocks.missing(head, min(len(head.remaining_prefill_tokens), left), free)
    return HeadRefusal(reason, head.request_id, missing)


def of_call(
    scheduler: Any, blocks: KVBlocks, before: CallStart, end: CallResult, why: HeadRefusal, numbers: dict[str, int], *,
    chunks: int, admitted: int, extended: int,
) -> wire.CallFigures:  # fmt: skip
    """The figures of a call. Preemptions and aborts that follow it are added when it is written."""
    return wire.CallFigures(
        token_budget=before.token_budget,
        num_scheduled_tokens=end.num_tokens,
        num_running=len(scheduler.active_requests),
        num_running_decodes=before.decodes,
        num_prefilling=before.prefilling,
        num_waiting=num_waiting(scheduler),
        num_deferred=0,
        num_chunks=chunks,
        num_admitted=admitted,
        num_extended=extended,
        num_preempted=0,
        num_aborted=0,
        num_free_blocks=blocks.free(),
        num_blocks=blocks.num_blocks,
        num_missing_blocks=why.missing_blocks,
        head=numbers.get(why.head, -1),
        cache_read_budget=before.cache_budget,
        num_cache_read_tokens=-1 if end.fast else end.cache_read,
    )


def offloaded(
    scheduler: Any, blocks: KVBlocks, reason: str, call_figures: wire.CallFigures, preempted: int, head: int
) -> tuple[str, wire.CallFigures]:
    """A call's reason and figures after requests were offloaded for it. They wait now; `head` is the first's number."""
    if preempted and not reason and head >= 0:
        reason, call_figures = "preemption", call_figures._replace(head=head)
    return reason, call_figures._replace(
        num_preempted=preempted,
        num_running=len(scheduler.active_requests),
        num_waiting=num_waiting(scheduler),
        num_free_blocks=blocks.free(),
    )
