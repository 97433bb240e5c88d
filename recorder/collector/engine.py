"""What the collector asks of an engine that lives in one process, or in many: frames in, rows of the trace out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from fdtrace.recorder.trace.column_values import ColumnArrays

from fdtrace.recorder.collector.call_rows import CallRows
from fdtrace.recorder.collector.ledger import Ledger
from fdtrace.recorder.collector.part import Part
from fdtrace.recorder.collector.reader import FrameBlock


@dataclass
class Decoded:
    """Rows ready for the trace: columns of steps, and rows of the smaller tables as tuples in the schema's order."""

    steps: list[ColumnArrays] = field(default_factory=list)
    step_requests: list[ColumnArrays] = field(default_factory=list)
    requests: list[tuple[Any, ...]] = field(default_factory=list)
    events: list[tuple[Any, ...]] = field(default_factory=list)
    rank_memory: list[tuple[int, ...]] = field(default_factory=list)
    calls: list[ColumnArrays] = field(default_factory=list)
    call_requests: list[ColumnArrays] = field(default_factory=list)


class Engine(Protocol):
    """One engine of a recording. Its state is committed with its rows, so that a killed collector's successor goes on.

    `engine_id`: its number in the trace; `row`: what it says of itself, None before it has.
    """

    engine_id: int
    row: dict[str, Any] | None
    ledger: Ledger
    call_rows: CallRows
    num_steps: int

    @property
    def full(self) -> bool:
        """Whether the steps asked for are decoded: of what follows only their ends are part of the recording."""

    @property
    def unflushed(self) -> int:
        """Forwards decoded since the last `take`."""

    def feed(self, part: Part, chunk: FrameBlock) -> None:
        """Take in consecutive frames of one of its rings. `part.past` becomes true at one beyond the last step."""

    def take(self, read_at: int) -> Decoded:
        """The rows that are whole since the last call, all rings having been read since `read_at` (UTC ns; 0: to the
        end).
        """

    def discard(self) -> None:
        """Forget what is not taken yet: it makes no sense."""

    def state(self) -> dict[str, Any]:
        """All that going on needs, as JSON; call it after `take`."""
