"""What the requests of a driven scheduler have generated, and what its driver's answers say about them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from fdtrace.replayer.config import SchedulerConfig
from fdtrace.replayer.model.events import Arrived, BlockShortage, Resumed
from fdtrace.replayer.model.request import AcceptancePlan

FOR_BLOCKS = ("blocks", "watermark")
"""Values of `not_admitted`: the head waits for KV blocks."""
FIRST_TOKEN = 1000
"""Smaller tokens mean something to some engines."""


@dataclass(slots=True)
class KnownRequest:
    """What a request has generated, as the model's `Request` counts it."""

    prompt: int
    plan: AcceptancePlan
    emitted: int = 0
    forwards: int = 0


def head_of(answer: dict[str, Any]) -> dict[str, Any]:
    """Fields of a `Decision` about the head of the queue, as far as the driver knows them: why it was not admitted, the
    blocks that it lacked, and what all its tokens need.
    """
    reason, head = answer.get("not_admitted"), answer.get("head")
    fields: dict[str, Any] = {"not_admitted": reason, "num_missing_blocks": answer.get("missing_blocks")}
    if head is not None and head[1] > answer["free_blocks"]:
        name, needed = head
        fields["lack"] = BlockShortage(name, needed)
        if fields["num_missing_blocks"] is None and reason in (None, *FOR_BLOCKS):
            fields["num_missing_blocks"] = needed - answer["free_blocks"]
    return fields


def state_of(resumed: Resumed) -> dict[str, int]:
    """The state of a request that ran before the first step, in a driver's message."""
    return {
        "num_computed_tokens": int(resumed.num_computed_tokens),
        "num_blocks": int(resumed.num_blocks),
        "num_emitted_tokens": int(resumed.num_emitted_tokens),
        "decoding": int(resumed.decoding),
        "waiting": int(resumed.waiting),
        "num_prefill_tokens": resumed.num_prefill_tokens or resumed.arrived.num_prompt_tokens,
        "num_in_flight_tokens": resumed.num_in_flight_tokens,
        "num_offloaded_tokens": resumed.num_offloaded_tokens,
        "num_offloaded_blocks": resumed.num_offloaded_blocks,
    }


def prompt_runs(
    config: SchedulerConfig, event: Arrived, token_of: Callable[[Hashable], int]
) -> tuple[list[list[int]], int]:
    """The prompt as runs of [token, count], and the token that its output consists of.

    Blocks of equal content consist of equal tokens, other blocks of other tokens.
    """
    size, left = config.block_size, event.num_prompt_tokens
    key: Callable[[int], Hashable] = event.block_key or (lambda block: (event.request_id, block))
    if not config.prefix_caching:
        return [[FIRST_TOKEN, left]], FIRST_TOKEN
    runs = []
    for block in range(-(-left // size)):
        runs.append([token_of(key(block)), min(size, left)])
        left -= size
    return runs, token_of(key(len(runs)))
