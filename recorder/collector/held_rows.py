"""Which request holds which row of the batch, where a keyframe of one process and the tasks of another say so."""

from __future__ import annotations

from typing import Any

from fdtrace.recorder.trace.column_values import MISSING

from fdtrace.recorder.collector.ledger import Ledger
from fdtrace.recorder.collector.steps import Steps


class HeldRows:
    """`row_of`: the row of each request that holds one, by number."""

    def __init__(self, steps: Steps, ledger: Ledger) -> None:
        self.steps, self.ledger = steps, ledger
        self.row_of: dict[int, int] = {}
        self.from_keyframe: dict[int, tuple[int, int, int]] = {}
        """Request, tokens computed and blocks of the rows that a keyframe named, until the next forward."""

    def hold(self, row: int, number: int, computed: int, blocks: int) -> None:
        """As `Steps.hold`; a request holds one row, and leaves the one that it held."""
        self.row_of.pop(self.steps.held.get(row, MISSING), None)
        self.steps.hold(row, number, computed, blocks)
        if number >= 0:
            self.release(number)
            self.row_of[number] = row

    def free(self, row: int) -> None:
        """Nobody holds a row."""
        self.hold(row, MISSING, 0, 0)

    def release(self, number: int) -> None:
        """A request leaves its row, if it holds one."""
        row = self.row_of.get(number)
        if row is not None:
            self.free(row)

    def free_all(self) -> None:
        """It is not known any more who holds what."""
        for row in list(self.row_of.values()):
            self.free(row)

    def hold_from_keyframe(self) -> None:
        """Hold the rows that a keyframe named and of which nothing else was said since."""
        for row, (number, computed, blocks) in self.from_keyframe.items():
            held = self.steps.held.get(row, MISSING) >= 0 or number in self.row_of
            if not held and number in self.ledger.live:
                self.hold(row, number, computed, blocks)
        self.from_keyframe = {}

    def state(self) -> dict[str, Any]:
        """As JSON."""
        return {"row_of": list(self.row_of.items()), "from_keyframe": list(self.from_keyframe.items())}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""
        self.row_of = dict(state["row_of"])
        self.from_keyframe = {row: tuple(held) for row, held in state["from_keyframe"]}
