"""Why vLLM's `Scheduler.schedule()` gave nothing to a running request (v1/core/sched/scheduler.py).

The rules are those of its loop over the running requests, in their order. Like those of the waiting requests
(`vllm_reasons.py`), they are applied right after the call: a request that got nothing is as the call found it. What the
requests before it got is known, so what was left of the budgets when the loop came to it is known too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from . import vllm_reasons as reasons


class CallBudgets(NamedTuple):
    """What a call could hand out: tokens, and tokens with draft slots (a large number if there is no such budget).

    `draft_slots`: what each request pays of the second besides its tokens. `throttled`: the call deferred prefills.
    """

    tokens: int
    inputs: int
    draft_slots: int
    throttled: bool


def resting(scheduler: Any, scheduled: dict[str, int], budgets: CallBudgets) -> dict[str, str]:
    """The reason of each running request that is not in `scheduled` (tokens by request), by request."""
    if reasons.pause_of(scheduler) == "PAUSED_ALL":
        return {request.request_id: "paused" for request in scheduler.running}
    tokens, inputs, ended = budgets.tokens, budgets.inputs, ""
    found: dict[str, str] = {}
    for request in scheduler.running:
        given = scheduled.get(request.request_id)
        if given is not None:
            tokens -= given
            inputs -= given + budgets.draft_slots
            continue
        if not ended:  # the loop ends for all requests that follow
            ended = "budget" if tokens <= 0 else "input_budget" if inputs <= budgets.draft_slots else ""
        reason = ended or _passed(scheduler, request, budgets.throttled)
        if reason == "blocks":
            ended = reason
        found[request.request_id] = reason
    return found


def _passed(scheduler: Any, request: Any, throttled: bool) -> str:
    """The rule by which the loop passed a request while it had a budget."""
    placeholders = getattr(request, "num_output_placeholders", 0)
    computed = request.num_computed_tokens
    if placeholders > 0 and computed + 2 - placeholders >= request.num_prompt_tokens + request.max_tokens:
        return "ending"
    if getattr(scheduler, "current_step", 0) < getattr(request, "next_decode_eligible_step", 0):
        return "pipeline"
    if throttled and getattr(request, "is_prefill_chunk", False):
        return "throttle"
    if request.num_tokens_with_spec + placeholders - computed <= 0:
        return "in_flight"
    if scheduler.max_model_len - computed <= getattr(scheduler, "num_sampled_tokens_per_step", 1):
        return "max_model_len"
    return "other" if _may_be_cut_to_nothing(scheduler, request) else "blocks"


def _may_be_cut_to_nothing(scheduler: Any, request: Any) -> bool:
    """Whether other rules may leave it no token: alignment to blocks, encoder inputs, lookahead of the drafter."""
    return bool(
        getattr(scheduler, "need_mamba_block_aligned_split", False)
        or getattr(scheduler, "num_prefill_lookahead", 0) > 1
        or getattr(request, "has_encoder_inputs", False)
        or (getattr(scheduler, "ec_connector", None) is not None and getattr(request, "mm_features", None))
    )
