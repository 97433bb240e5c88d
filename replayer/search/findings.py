"""What a search looks for: the kinds of faults, the bounds of those that have one, and what was found.

A finding is a fact of one run: at this step, this happened. It does not say whose fault it is. A formula decides the
budget; who gets blocks and who is preempted is decided by the scheduler around it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from fdtrace.recorder.errors import UsageError

FaultKind = Literal["exceeded", "hang", "livelock", "held", "fails", "starved", "preempted", "withheld"]

FAULT_KINDS: Mapping[FaultKind, str] = {
    "exceeded": "a step runs more tokens than max_num_batched_tokens",
    "hang": "there are requests, and nothing moves any more",
    "livelock": "requests are preempted and computed again for ever, and none gains a token",
    "held": "requests that never join hold slots and blocks, and others wait for them for ever (roles only)",
    "fails": "the scheduler raises an exception",
    "starved": "a request runs nothing in many steps in a row in which later ones run",
    "preempted": "one request is preempted many times",
    "withheld": "in many steps in a row, more than half of the limit stays free, and the budget holds back prompts "
    "that would have fitted",
}
"""Kind -> what it means. The order is the order in which a run looks for them: a step can show several."""

HARD: tuple[FaultKind, ...] = ("exceeded", "hang", "livelock", "held", "fails")
"""Kinds without a bound: one case is a fault."""


@dataclass(frozen=True)
class FaultBounds:
    """How much of a thing counts as a fault.

    `starved_steps`, `withheld_steps`: steps in a row; more are a finding. `preemptions`: of one request.
    """

    starved_steps: int = 100
    preemptions: int = 20
    withheld_steps: int = 20

    def __post_init__(self) -> None:
        for name in ("starved_steps", "preemptions", "withheld_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", hint="1 or more")


@dataclass(frozen=True)
class Finding:
    """One fault in one run: its kind, the step at which it was seen, and a sentence.

    `amount` is the size of the fault: tokens over the limit, steps in a row, or preemptions; 0 for the other kinds.
    """

    kind: FaultKind
    step: int
    text: str
    amount: int = 0

    def signature(self, request_ids: Iterable[str]) -> str:
        """The finding without its numbers and its requests: two cases with equal ones show the same fault."""
        text = self.text.partition(": ")[2] if self.kind in ("hang", "livelock", "held", "fails") else ""
        for name in sorted(request_ids, key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "R", text)
        text = re.sub(r"-?\d[\d,.]*", "N", text.partition(" (")[0])
        text = re.sub(r"R(, R)*( and (R|N more))?", "R", text)
        text = text.replace("requests", "request").replace("stalls", "stall").replace("holds", "hold")
        return f"{self.kind}: {text}" if text else self.kind


def parse_kinds(texts: list[str] | None) -> tuple[FaultKind, ...]:
    """The kinds of repeated or comma-separated names; all if there are none. UsageError names those that exist."""
    names = [name.strip() for text in texts or () for name in text.split(",") if name.strip()]
    for name in names:
        if name not in FAULT_KINDS:
            raise UsageError(f"there is no fault {name!r:.40}", hint=f"one of {', '.join(FAULT_KINDS)}")
    return tuple(kind for kind in FAULT_KINDS if not names or kind in names)
