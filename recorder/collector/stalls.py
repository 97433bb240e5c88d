"""Finds the decodes that did not run because their block table was too short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fdtrace.recorder.collector.columns import Forwards
from fdtrace.recorder.collector.ledger import Ledger


def limits(engine: Mapping[str, Any]) -> tuple[int, int]:
    """Draft tokens of a decode and tokens of a block, from an engine's row.

    0 tokens of a block: no decode of this engine can stall, or the sizes are not known.
    """
    if engine.get("stalls") is False:
        return 0, 0
    drafts = engine.get("num_speculative_tokens") or 0 if engine.get("spec_method") else 0
    return drafts, engine.get("block_size") or 0


def deduced(
    forwards: Forwards,
    steps: Any,
    limits: tuple[int, int],
    spans: dict[int, tuple[int, int]],
    has_ended: Callable[[int, int], bool],
) -> dict[int, set[int]]:
    """The stalled rows of each forward: rows with a decode that ran nothing, and whose block table ends before the
    tokens of the next forward.

    The rule is FastDeploy's `is_block_step`: a forward may write up to token index `num_total_tokens - 1 + K`.

    Args:
        forwards: decoded forwards.
        steps: the step of each forward.
        limits: K, and the tokens of a block.
        spans: for each request, the tokens to prefill and the tokens at which it ends.
        has_ended: `has_ended(request, step)`: whether the request had run its last step before.
    """
    drafts, block_size = limits
    stalled: dict[int, set[int]] = {}
    if not block_size:
        return stalled
    idle = forwards.idle()
    short = (idle[3] - 1 + drafts) // block_size >= idle[4]
    for index, row, number, computed, blocks in np.stack(idle, 1)[short].tolist():
        need, stop = spans.get(number, (0, 0))
        if (
            blocks
            and computed > need
            and not computed >= stop > 0
            and not has_ended(number, int(steps[index]))
        ):
            stalled.setdefault(index, set()).add(row)
    return stalled


class Stalls:
    """Counts the stalled rows of each forward: rows that the runner reported, and rows that are deduced."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.limits = (0, 0)
        self.spans: dict[int, tuple[int, int]] = {}
        """For each request, the tokens to prefill and the tokens at which it ends."""
        self.reported: list[tuple[int, int]] = []
        """Index among the waiting forwards, and row."""
        self.stalled: set[int] = set()

    def set_limits(self, engine: Mapping[str, Any]) -> None:
        """Take the sizes from the engine's row."""
        self.limits = limits(engine)

    def count(self, forwards: Forwards, steps: Any, has_ended: Callable[[int, int], bool]) -> Any:
        """Stalled rows of each forward. A row that was not stalled in the forward before also becomes an event."""
        stalled = deduced(forwards, steps, self.limits, self.spans, has_ended)
        for place, row in self.reported:
            stalled.setdefault(place, set()).add(row)
        self.reported = []
        counts = np.zeros(len(steps), np.int64)
        for place, step in enumerate(steps.tolist()):
            rows = stalled.get(place, set())
            counts[place] = len(rows)
            for row in sorted(rows - self.stalled):
                self.ledger.event("stalled", step, int(forwards.requests_held[place, row]))
            self.stalled = rows
        return counts

    def state(self) -> dict[str, Any]:
        """The state as JSON. Call it when no forward waits."""
        spans = {str(number): span for number, span in self.spans.items()}
        return {"limits": self.limits, "spans": spans, "stalled": sorted(self.stalled)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state`."""
        drafts, block_size = state["limits"]
        self.limits, self.stalled = (drafts, block_size), set(state["stalled"])
        self.spans = {int(number): (need, stop) for number, (need, stop) in state["spans"].items()}
