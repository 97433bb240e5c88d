"""The variables that a formula may use, and the meaning of each."""

from __future__ import annotations

from dataclasses import dataclass

from fdtrace.replayer.config import SchedulerConfig


@dataclass(slots=True)
class Variables:
    """The values that a formula sees when a scheduling call begins. Integers. One object is used for many calls."""

    max_num_batched_tokens: int
    max_num_seqs: int
    num_speculative_tokens: int
    num_draft_tokens: int
    speculation: int
    block_size: int
    num_blocks: int
    max_model_len: int
    num_draft_slots: int = 0
    num_running_decodes: int = 0
    num_running: int = 0
    num_waiting: int = 0

    @classmethod
    def of(cls, config: SchedulerConfig) -> Variables:
        """The variables of a scheduler that runs nothing yet."""
        return cls(
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_seqs=config.max_num_seqs,
            num_speculative_tokens=config.num_speculative_tokens,
            num_draft_tokens=config.num_draft_tokens,
            speculation=int(config.speculation),
            block_size=config.block_size,
            num_blocks=config.num_blocks,
            max_model_len=config.max_model_len,
            num_draft_slots=config.num_draft_slots,
        )


@dataclass(slots=True)
class RequestVariables:
    """What a rule about one request sees besides the variables of its call. Integers.

    An expression names both kinds; so a name that is not here is looked up in `call`.
    """

    call: Variables
    num_prompt_tokens: int = 0
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0
    num_chunk_tokens: int = 0
    budget_left: int = 0
    was_preempted: int = 0

    def __getattr__(self, name: str) -> int:
        """A variable of the call. AttributeError if there is none of that name."""
        if name not in VARIABLES:
            raise AttributeError(name)
        value: int = getattr(self.call, name)
        return value


VARIABLES: dict[str, str] = {
    "max_num_batched_tokens": "the scheduler's limit, tokens a step",
    "max_num_seqs": "most sequences that run at once",
    "num_speculative_tokens": "drafts as configured: FastDeploy's config holds 1 also without a method",
    "num_draft_tokens": "drafts that a decode's forward really runs: 0 without a speculative method",
    "speculation": "1 where a speculative method is set, else 0",
    "block_size": "tokens a KV block",
    "num_blocks": "KV blocks of the device",
    "max_model_len": "most tokens of a sequence",
    "num_draft_slots": "tokens of the workers' input that each request pays for its drafter: 0 except in vLLM",
    "num_running_decodes": "running requests past their prefill, when the call begins",
    "num_running": "running requests, when the call begins",
    "num_waiting": "waiting requests, when the call begins",
}
"""Name -> meaning, in the order in which `fdtrace formulas` lists them."""

REQUEST_VARIABLES: dict[str, str] = {
    "num_prompt_tokens": "tokens of the request's prompt",
    "num_computed_tokens": "its tokens computed so far, cached ones included",
    "num_cached_tokens": "its tokens that the prefix cache supplied when it was admitted",
    "num_chunk_tokens": "tokens of the chunk (in chunk_charge; else 0)",
    "budget_left": "what is left of the call's budget",
    "was_preempted": "1 if it waits after a preemption, else 0",
}
"""The same of one request. Only the rules of `call_rules.OF_A_REQUEST` may name them."""

VARYING = ("num_running_decodes", "num_running", "num_waiting")
"""The variables that change from call to call; the others are the deployment's."""
