"""Which request holds which row of the batch, when one process sends keyframes and another reports the tasks."""

from __future__ import annotations

from typing import Any

from fdtrace.recorder.collector.ledger import Ledger
from fdtrace.recorder.collector.steps import Steps
from fdtrace.recorder.trace.column_values import MISSING


class HeldRows:
    """The rows that are held. `row_of` maps a request's number to its row."""

    def __init__(self, steps: Steps, ledger: Ledger) -> None:
        self.steps, self.ledger = steps, ledger
        self.row_of: dict[int, int] = {}
        self.from_keyframe: dict[int, tuple[int, int, int]] = {}
        """Request, computed tokens and blocks of each row that a keyframe named. Used up by the next forward."""

    def hold(self, row: int, number: int, computed: int, blocks: int) -> None:
        """As `Steps.hold`. A request holds one row: it leaves the row that it held before."""
        self.row_of.pop(self.steps.held.get(row, MISSING), None)
        self.steps.hold(row, number, computed, blocks)
        if number >= 0:
            self.release(number)
            self.row_of[number] = row

    def free(self, row: int) -> None:
        """Mark a row as held by no request."""
        self.hold(row, MISSING, 0, 0)

    def release(self, number: int) -> None:
        """Free the row of a request, if it holds one."""
        row = self.row_of.get(number)
        if row is not None:
            self.free(row)

    def free_all(self) -> None:
        """Free all rows: it is no longer known which request holds which."""
        for row in list(self.row_of.values()):
            self.free(row)

    def hold_from_keyframe(self) -> None:
        """Hold the rows that a keyframe named, unless something newer is known of the row or the request."""
        for row, (number, computed, blocks) in self.from_keyframe.items():
            held = self.steps.held.get(row, MISSING) >= 0 or number in self.row_of
            if not held and number in self.ledger.live:
                self.hold(row, number, computed, blocks)
        self.from_keyframe = {}

    def state(self) -> dict[str, Any]:
        """The state as JSON."""
        return {"row_of": list(self.row_of.items()), "from_keyframe": list(self.from_keyframe.items())}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state`."""
        self.row_of = dict(state["row_of"])
        self.from_keyframe = {row: tuple(held) for row, held in state["from_keyframe"]}
