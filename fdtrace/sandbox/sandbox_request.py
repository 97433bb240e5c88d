"""A request of the sandbox engine, and what one scheduling call decided about them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NO_SLOT = -1
"""`SandboxRequest.slot` while it does not run."""


@dataclass(eq=False)
class SandboxRequest:
    """A sequence: its tokens, what of it is computed, and where its KV lies.

    `num_computed_tokens` counts tokens whose work is done: of a prefill those already in the KV cache; of a
    decode all of prompt and output, the last sampled one included (its own KV is written by the next step).
    It changes after a forward, never between scheduling and forward.
    """

    request_id: str
    num_prompt_tokens: int
    max_tokens: int
    """Output tokens at which it finishes."""
    buffer: NDArray[np.int32] = field(repr=False)
    """Room for prompt and output; the first `num_total_tokens` are valid."""
    slot: int = NO_SLOT
    """Row of the running batch; stable while it runs."""
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens found in a prefix cache: 0, this engine has none."""
    num_prefill_tokens: int = 0
    """Tokens that its prefill has to compute: the prompt, and after a preemption the output so far."""
    block_table: list[int] = field(default_factory=list)
    """Physical KV blocks; token position p lies in `block_table[p // block_size]`."""

    @classmethod
    def make(cls, request_id: str, prompt: NDArray[np.int32], max_tokens: int) -> SandboxRequest:
        """A request of `prompt` (tokens) that makes `max_tokens` output tokens."""
        buffer = np.zeros(len(prompt) + max_tokens, dtype=np.int32)
        buffer[: len(prompt)] = prompt
        return cls(request_id, len(prompt), max_tokens, buffer, num_prefill_tokens=len(prompt))

    @property
    def num_total_tokens(self) -> int:
        """Prompt and output tokens so far."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Prompt and output so far, int32 [num_total_tokens]; a view."""
        return self.buffer[: self.num_total_tokens]

    @property
    def output(self) -> list[int]:
        """Output tokens so far."""
        return [int(token) for token in self.tokens[self.num_prompt_tokens :]]

    @property
    def num_remaining_tokens(self) -> int:
        """Output tokens that it may still make."""
        return self.max_tokens - self.num_output_tokens

    @property
    def prefilled(self) -> bool:
        """Whether it is past its prefill, so that the next forward decodes it."""
        return self.num_computed_tokens >= self.num_prefill_tokens

    def can_decode(self, num_drafts: int, block_size: int) -> bool:
        """Whether its block table holds the sampled token and all drafts (FastDeploy: no `is_block_step`)."""
        return self.num_total_tokens - 1 + num_drafts < len(self.block_table) * block_size

    def append(self, tokens: list[int]) -> None:
        """Take the tokens that a forward emitted; raises `ValueError` beyond `max_tokens`."""
        if len(tokens) > self.num_remaining_tokens:
            raise ValueError(f"{self.request_id}: {len(tokens)} tokens, {self.num_remaining_tokens} remain")
        total = self.num_total_tokens
        self.buffer[total : total + len(tokens)] = tokens
        self.num_output_tokens += len(tokens)


@dataclass
class Scheduled:
    """What one scheduling call decided. Counts are taken after it unless named otherwise."""

    call: int
    """Number of the scheduling call, from 0; calls that schedule nothing count too."""
    token_budget: int
    """Tokens that the formula let this call hand out, at its start."""
    num_scheduled_tokens: int
    """Tokens that the call itself counted."""
    num_running_decodes: int
    """Running requests past their prefill at the call's start."""
    prefills: list[tuple[SandboxRequest, int, int]]
    """Chunks to run: request, first token, one past the last."""
    extended: list[SandboxRequest]
    """Decodes that got new KV blocks."""
    preempted: list[tuple[SandboxRequest, str, int, int]]
    """Request, reason, KV blocks freed, computed tokens discarded."""
    aborted: list[SandboxRequest]
    num_running: int
    num_waiting: int
    num_free_blocks: int
    num_blocks: int
    not_admitted: str | None
    """Why the head of the queue stayed: `budget`, `blocks`, `slots`, `preemption`; None: nothing waited."""
    num_missing_blocks: int | None
    """KV blocks that it lacked, where `not_admitted` is `blocks`."""
