"""What a driven scheduler's requests have made, and what its driver's answers say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fdtrace.replayer.events import Resumed
from fdtrace.replayer.request import Plan


@dataclass(slots=True)
class KnownRequest:
    """What a request has made: as the model's `Request` counts it."""

    prompt: int
    plan: Plan
    emitted: int = 0
    forwards: int = 0


def head_of(answer: dict[str, Any]) -> dict[str, Any]:
    """The head of the queue, where the driver says what it needs: fields of a `Decision`."""
    head = answer.get("head")
    if head is None:
        return {}
    name, needed = head
    missing = needed - answer["free_blocks"]
    if missing <= 0:
        return {}
    return {"blocked": name, "num_needed_blocks": needed, "num_missing_blocks": missing}


def state_of(resumed: Resumed) -> dict[str, int]:
    """A request that ran before the first step, as a driver is told of it."""
    return {
        "num_computed_tokens": int(resumed.num_computed_tokens),
        "num_blocks": int(resumed.num_blocks),
        "num_emitted_tokens": int(resumed.num_emitted_tokens),
        "decoding": int(resumed.decoding),
        "waiting": int(resumed.waiting),
    }
