"""Why a call of vLLM's `Scheduler` admitted no more of the waiting requests: by the rules that the recorder applies.

`vllm_driver.py` imports it from its own directory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.drivers.driver_protocol import Message
    from fdtrace.recorder.agent import vllm_reasons as reasons
else:
    from agent_modules import agent_module

    reasons = agent_module("vllm_reasons")

QUEUES = ("kv_holding_waiting", "waiting", "skipped_waiting")
"""Queues of waiting requests, in the order in which they are served. Each version has some of these."""
NO_LIMIT = 1 << 31
"""Stands for what is left of a budget that this version does not have."""


class AdmissionStops:
    """Looks at a `Scheduler` right after a call."""

    def __init__(self, scheduler: Any, block_size: int) -> None:
        self.scheduler, self.block_size = scheduler, block_size
        self.rules = reasons.rules_of(scheduler)

    @property
    def queues(self) -> list[Any]:
        """The queues that have waiting requests."""
        return [queue for name in QUEUES if (queue := getattr(self.scheduler, name, None))]

    def after(self, output: Any, found: dict[str, bool], preempted: int) -> Message:
        """Fields of an answer: `not_admitted`, `missing_blocks`, and `head`: the request at which the loop stopped, and
        the KV blocks that all its tokens need.

        Args:
            output: the `SchedulerOutput` of the call.
            found: the requests that were running before it, and whether each was decoding.
            preempted: how many of these it preempted.
        """
        queued = self.queues
        if not queued:
            return {"not_admitted": None, "missing_blocks": None, "head": None}
        tokens = output.num_scheduled_tokens
        went_on = [decodes for name, decodes in found.items() if name in tokens]
        ran = reasons.RunningPart(len(went_on), went_on.count(False), False, preempted)
        stop = reasons.stop_of(self.scheduler, queued, self._left(output), ran, self.rules)
        return {
            "not_admitted": stop.reason,
            "missing_blocks": stop.missing_blocks if stop.missing_blocks >= 0 else None,
            "head": self._needs(stop.head),
        }

    def _left(self, output: Any) -> Any:
        """What the call left, as `reasons.BudgetsLeft`."""
        scheduler, counted = self.scheduler, output.total_num_scheduled_tokens
        paused = reasons.pause_of(scheduler) == "PAUSED_ALL"
        tokens = 0 if paused else int(scheduler.max_num_scheduled_tokens)
        inputs, slots = NO_LIMIT, 0
        if self.rules.input_budget:
            slots = reasons.draft_slots(scheduler)
            most = scheduler.scheduler_config.max_num_batched_tokens
            inputs = most - counted - slots * len(output.num_scheduled_tokens)
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return reasons.BudgetsLeft(tokens - counted, inputs, slots, free)

    def _needs(self, request: Any) -> list[Any] | None:
        """A request and the KV blocks that all its tokens need: a list, for JSON.

        None if layers differ: a layer that keeps only a window needs fewer blocks.
        """
        if len(self.scheduler.kv_cache_config.kv_cache_groups) != 1:
            return None
        return [request.request_id, -(-request.num_tokens // self.block_size)]
