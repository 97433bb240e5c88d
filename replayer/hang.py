"""Work pending and nothing moving: found, and named with its cause."""

from __future__ import annotations

from collections.abc import Collection

from fdtrace.replayer.events import Decision, Forward
from fdtrace.replayer.interface import AnyScheduler


def is_stuck(decision: Decision, forward: Forward) -> bool:
    """Whether a call and its forward changed nothing: then the next ones do neither, unless something
    arrives.
    """
    return decision.is_empty and forward.num_tokens == 0 and not forward.finished


def cause_of(scheduler: AnyScheduler, decision: Decision, stalled: Collection[str]) -> str:
    """Why nothing moves, from the call that changed nothing, and the requests that its forward could not run."""
    waiting = f"{decision.num_waiting} waiting" if decision.num_waiting else "none waiting"
    if scheduler.config.role != "mixed":
        waiting += f", {scheduler.num_asking} without a slot"
    state = f"{decision.num_running} requests running, {waiting}, {decision.num_free_blocks} blocks free"
    if scheduler.num_asking and not decision.num_running:
        return f"the next request is given no slot and no blocks, and none will be freed ({state})"
    if scheduler.explains:
        return f"{_rule(scheduler, decision, len(stalled))} ({state})"
    return f"the scheduler decides nothing and tells no reason, {len(stalled)} requests stall ({state})"


def _rule(scheduler: AnyScheduler, decision: Decision, stalled: int) -> str:
    budget, reason = decision.token_budget, decision.not_admitted
    if budget <= 0:
        decodes = decision.num_running_decodes
        return (
            f"the budget is {budget} with {decodes} requests decoding: the scheduling loop never runs, "
            f"no block table is extended, {stalled} requests stall"
        )
    if stalled and (reason == "blocks" or decision.num_missing_blocks is None):
        return f"{stalled} requests stall, and the call extends none of them with a budget of {budget}"
    if decision.skipped:
        return f"a budget of {budget} reaches no boundary that chunks align to"
    if reason == "budget" and not scheduler.config.chunked_prefill:
        return f"the next prompt is not chunked and is larger than the budget of {budget}"
    if decision.num_missing_blocks is not None:
        which = "request that joined" if scheduler.config.role == "decode" else "prefill"
        return f"the next {which} lacks {decision.num_missing_blocks} blocks, and none will be freed"
    return f"nothing is decided with a budget of {budget} ({reason})"
