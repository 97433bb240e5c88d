"""The checkpoints of an engine whose calls are its steps: what its agent wrote again, for a flight recorder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fdtrace.recorder.collector.found_state import Checkpoint, FoundRow
from fdtrace.recorder.collector.frames import EventFrame
from fdtrace.recorder.trace.column_values import MISSING


class StepCheckpoints:
    """Decodes them. The first event of each is the engine's own: it says how many requests follow, and whether hashes
    of cached blocks come after these.
    """

    def __init__(self) -> None:
        self.complete: list[Checkpoint] = []
        """Those that have become complete since `take`."""
        self._rows: list[FoundRow] = []
        """Of one that is not complete: its rows so far, its step, and what is still to come."""
        self._step = MISSING
        self._num_requests = 0
        self._has_hashes = False

    def lose(self) -> None:
        """Frames were lost: what has begun will not be complete."""
        self._rows = []

    def take_in(self, frame: EventFrame, next_request: int) -> None:
        """Take in an event `checkpoint`. `next_request`: requests with smaller numbers are known."""
        head, text = frame.head, frame.detail or "{}"
        if head.request < 0:
            engine = json.loads(text)
            self._rows, self._step = [], head.step
            self._num_requests = int(engine["num_requests"])
            self._has_hashes = engine["num_cached_blocks"] > 0
        elif not self._rows:
            return
        else:
            self._num_requests -= 1
        self._rows.append((head.ts, head.request, text))
        self._end(next_request)

    def take_in_hashes(self, hashes: Sequence[int], next_request: int) -> None:
        """Take in the salted hashes of the cached blocks."""
        if self._rows and self._has_hashes and not self._num_requests:
            self._has_hashes = False
            self._rows.append((self._rows[-1][0], MISSING, json.dumps({"cached_blocks": list(hashes)})))
            self._end(next_request)

    def _end(self, next_request: int) -> None:
        if not self._num_requests and not self._has_hashes:
            rows, self._rows = self._rows, []
            self.complete.append(Checkpoint(MISSING, next_request, tuple(rows), self._step))

    def take(self) -> list[Checkpoint]:
        """Those that have become complete since the last call."""
        complete, self.complete = self.complete, []
        return complete

    def state(self) -> dict[str, Any]:
        """The state as JSON. Call it after `take`."""
        return {
            "rows": self._rows, "step": self._step, "num_requests": self._num_requests, "has_hashes": self._has_hashes,
        }  # fmt: skip

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state`."""
        self._rows = [(int(ts), int(number), str(detail)) for ts, number, detail in state["rows"]]
        self._step, self._num_requests = int(state["step"]), int(state["num_requests"])
        self._has_hashes = bool(state["has_hashes"])
