"""Why FastDeploy's `ResourceManagerV1.schedule()` admitted no more of the waiting requests.

The rules are those of its loop over the waiting queue (engine/sched/resource_manager_v1.py). They read the variables of
`schedule()` itself, in the last call that it makes before it returns.
"""

from __future__ import annotations

import sys
from typing import Any

LAST_METHODS = ("_log_console_scheduler_metrics", "update_metrics")
"""The methods of which `schedule()` calls the first that its version has, as the last before it returns."""


def envs() -> Any:
    """FastDeploy's own module of variables, or None."""
    return sys.modules.get("fastdeploy.envs")


def chunking_disabled() -> bool:
    """Whether a prompt must be prefilled whole (FD_DISABLE_CHUNKED_PREFILL)."""
    return bool(getattr(envs(), "FD_DISABLE_CHUNKED_PREFILL", False))


def head_refusal(manager: Any, names: dict[str, Any]) -> tuple[str, int]:
    """Why the head of the waiting queue stayed, and how many blocks it lacked (-1: blocks were not the reason).

    Args:
        manager: a `ResourceManagerV1` with a waiting request.
        names: the variables of its `schedule()`.
    """
    left = names.get("token_budget")
    if names.get("preempted_reqs"):
        reason = "preemption"
    elif names.get("chunk_prefill_in_running_not_satisfied"):
        reason = "blocks"
    elif left is None or len(names.get("skip_requests") or ()) >= len(manager.waiting):
        reason = "other"
    elif left <= 0 or (chunking_disabled() and left < manager.waiting[0].need_prefill_tokens):
        reason = "budget"
    elif _slots_taken(manager) >= manager.max_num_seqs:
        reason = "slots"
    else:
        reason = "blocks" if names.get("request") is manager.waiting[0] else "other"
    return reason, _missing(manager, names) if reason == "blocks" else -1


def _slots_taken(manager: Any) -> int:
    queued = sum(1 for request in manager.waiting if request.status.name == "PREEMPTED")
    leaving = len(manager.to_be_rescheduled_request_id_set) + len(manager.to_be_aborted_req_id_set)
    return len(manager.running) + leaving + queued


def _missing(manager: Any, names: dict[str, Any]) -> int:
    needed, free = (
        names.get("can_schedule_block_num_threshold"),
        len(manager.cache_manager.gpu_free_block_list),
    )
    return max(needed - free, -1) if isinstance(needed, int) and needed > free else -1
