"""How each engine names what all engines have, for sentences about a recording. Without a name: FastDeploy's."""

from __future__ import annotations

SCHEDULING_CALL = {"transformers": "schedule_batch()"}
"""Engine -> the method that decides a step. All others: `schedule()`."""

NO_BUDGET = {"vllm": "get no token", "transformers": "get no token"}
"""Engine -> what its running requests lack if the token budget is 0. Others: FastDeploy's blocks and chunks."""

REFUSALS = {
    "blocks": "waits for more KV blocks than are free ({free} of {blocks})",
    "budget": "does not fit the token budget of {budget}",
    "slots": "waits for a slot: {running} requests run",
    "preemption": "waits, as a call that preempts admits nothing",
    "input_budget": "does not fit the workers' input with its draft slots",
    "watermark": "waits for the watermark of free KV blocks ({free} of {blocks} are free)",
    "padding": "is padded to 1 + K tokens as a new decode, and these do not fit the budget",
    "throttle": "waits, as this data-parallel rank defers prefills",
    "paused": "waits, as the scheduler is paused",
    "cache_read": "needs more KV cache reads than the call's budget of them had left",
    "safety_margin": "waits for the safety margin of free KV blocks ({free} of {blocks} are free)",
}
"""`not_admitted` -> what the head of the waiting queue waits for. `blocks` and `free` are KV blocks."""

OWN_REFUSALS = {
    "vllm": {"slots": "waits: {running} requests run, of max_num_seqs"},
    "transformers": {
        "slots": "waits, as a batch takes max_requests_per_batch requests",
        "preemption": "waits, as requests were preempted: no request is admitted until a running one ends",
    },
}
"""Engine -> the reasons that it states otherwise."""


def scheduling_call(engine: str) -> str:
    """The method that decides a step."""
    return SCHEDULING_CALL.get(engine, "schedule()")


def lacks_without_budget(engine: str) -> str:
    """What running requests lack if the token budget is 0."""
    return NO_BUDGET.get(engine, "get no block and no chunk")


def refusal_text(
    engine: str, reason: str, *, free: int | None, blocks: int | None, budget: int | None, running: int | None
) -> str:
    """What the head of the waiting queue waits for, by `not_admitted`.

    Args:
        engine: the engine's name.
        reason: `not_admitted` of the call; another text or none: it is not ready.
        free, blocks: KV blocks that are free, and those that requests can hold.
        budget: tokens that the call could hand out.
        running: running requests.
    """
    text = OWN_REFUSALS.get(engine, {}).get(reason) or REFUSALS.get(reason, "is not ready to be scheduled")
    return text.format(free=free, blocks=blocks, budget=budget, running=running)
