"""What a call found in its queues, as the trace keeps it; and which calls wrote that again, for a flight recorder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fdtrace.recorder.agent import wire_order
from fdtrace.recorder.collector.order_frames import QueueFrame, cached_blocks
from fdtrace.recorder.trace.column_values import MISSING


def found_detail(frame: QueueFrame, salt: bytes) -> dict[str, Any]:
    """The detail of an event about a request, the prefix cache, or what is kept free for running requests."""
    value, (code, *more) = frame.head.num_total_tokens, frame.more
    place = wire_order.PLACES[code]
    detail: dict[str, Any] = {"place": place}
    if place == "cached":
        return detail | {"num_free_blocks": value, "blocks": cached_blocks(more, salt)}
    if place == "cache left out":
        return detail | {"num_blocks": value}
    if place == wire_order.LEAVING:
        return detail | {"number": value} | _found_fields(more)
    if place in (*wire_order.AGAIN, wire_order.WHOLE):
        return detail
    if frame.head.request == wire_order.NOBODY:
        return detail | ({"value": value / 1e9} if value >= 0 else {})
    return detail | {"num_total_tokens": value} | _found_fields(more)


def _found_fields(values: Sequence[int]) -> dict[str, int | None]:
    """The values behind the place, by their names in `wire_order.FOUND`; None: there is none."""
    names = wire_order.FOUND[1:]
    return {
        name: None if value == wire_order.NOBODY else value
        for name, value in zip(names, values, strict=False)
    }


FoundRow = tuple[int, int, str]
"""Of an event `checkpoint`: when it was written (ns, UTC), its request (MISSING: none), its detail (JSON)."""


@dataclass(frozen=True)
class Checkpoint:
    """A call that wrote all that it found, for a flight recorder: a trace may begin with it.

    Args:
        call: its number; MISSING: `step` dates it.
        next_request: requests with smaller numbers were known then.
        rows: what it found, in order. There is at least one.
        step: the step of the call, if its engine has no order of calls beside its steps; else MISSING.
    """

    call: int
    next_request: int
    rows: tuple[FoundRow, ...] = field(repr=False)
    step: int = MISSING

    @property
    def begins(self) -> int:
        """When it wrote the first row, ns, UTC."""
        return self.rows[0][0]

    @property
    def ends(self) -> int:
        """When it wrote the last one."""
        return self.rows[-1][0]

    def events(self, engine_id: int) -> list[tuple[Any, ...]]:
        """Rows of `event`: they belong to no step."""
        call = None if self.call < 0 else self.call
        return [
            (engine_id, None, ts, "checkpoint", None if number < 0 else number, None, detail, call)
            for ts, number, detail in self.rows
        ]


class Checkpoints:
    """Decodes the checkpoints of the scheduling process of one engine. Requests are numbered as in the trace."""

    def __init__(self, salt: bytes = b"") -> None:
        self.salt = salt
        self.complete: list[Checkpoint] = []
        """Those that have become complete since `take`."""
        self._call = MISSING
        self._rows: list[FoundRow] = []
        """Of one that is not complete: its call, and its rows so far."""

    def lose(self) -> None:
        """Frames were lost: what has begun will not be complete."""
        self._rows = []

    def take_in(self, frame: QueueFrame, numbers: dict[int, int]) -> bool:
        """Take in a frame of a checkpoint. Returns whether it is complete with it.

        Args:
            frame: one of kind `checkpoint`.
            numbers: the ring's numbers of requests -> the trace's.
        """
        head = frame.head
        if self._call != head.call:
            self._call, self._rows = head.call, []
        if wire_order.PLACES[frame.more[0]] != wire_order.WHOLE:
            detail = json.dumps(found_detail(frame, self.salt))
            self._rows.append((head.ts, numbers.get(head.request, MISSING), detail))
            return False
        rows, self._rows = self._rows, []
        if not rows or len(rows) != head.num_total_tokens:
            return False
        self.complete.append(Checkpoint(head.call, max(numbers.values(), default=MISSING) + 1, tuple(rows)))
        return True

    def take(self) -> list[Checkpoint]:
        """Those that have become complete since the last call."""
        complete, self.complete = self.complete, []
        return complete

    def state(self) -> dict[str, Any]:
        """The state as JSON. Call it after `take`."""
        return {"call": self._call, "rows": self._rows}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a saved `state`."""
        self._call = int(state["call"])
        self._rows = [(int(ts), int(number), str(detail)) for ts, number, detail in state["rows"]]
