"""What the collector needs of an engine, of one process or of many: frames go in, rows of the trace come out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from fdtrace.recorder.collector.call_rows import CallRows
from fdtrace.recorder.collector.engine_ring import EngineRing
from fdtrace.recorder.collector.found_state import Checkpoint
from fdtrace.recorder.collector.ledger import Ledger
from fdtrace.recorder.collector.reader import FrameBlock
from fdtrace.recorder.collector.steps import Steps
from fdtrace.recorder.trace.column_values import ColumnArrays


@dataclass
class Decoded:
    """Rows that are ready for the trace: columns, and for the smaller tables tuples in the schema's order."""

    steps: list[ColumnArrays] = field(default_factory=list)
    step_requests: list[ColumnArrays] = field(default_factory=list)
    requests: list[tuple[Any, ...]] = field(default_factory=list)
    events: list[tuple[Any, ...]] = field(default_factory=list)
    rank_memory: list[tuple[int, ...]] = field(default_factory=list)
    calls: list[ColumnArrays] = field(default_factory=list)
    call_requests: list[ColumnArrays] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    """Calls with which a trace may begin; their events are in `events`."""
    undated_events: Sequence[Sequence[Any]] = ()
    """Events whose step is not known yet (`events_without_step`): they come in `events` later."""


class Engine(Protocol):
    """One engine of a recording.

    Its state is committed together with its rows, so that after a collector is killed the next one can go on.

    `engine_id`: the engine's number in the trace. `row`: its row of `engine`; None before it has reported that.
    `step`: the last decoded step; -1 before the first.
    `agent_says_what_it_found`: whether the agent writes the requests that it found when the recording began. If it does
    not, they are those that hold rows of the first forward.
    """

    engine_id: int
    row: dict[str, Any] | None
    ledger: Ledger
    call_rows: CallRows
    step: int
    num_steps: int
    agent_says_what_it_found: bool
    max_steps: int | None
    steps: Steps

    @property
    def full(self) -> bool:
        """Whether all steps that were asked for are decoded. Later frames belong to the recording only if they complete
        these steps.
        """
        return self.max_steps is not None and self.num_steps >= self.max_steps

    @property
    def unflushed(self) -> int:
        """How many forwards were decoded since the last `take`."""
        return self.steps.num_waiting

    def feed(self, part: EngineRing, chunk: FrameBlock) -> None:
        """Decode consecutive frames of one ring. Sets `part.past` at a frame that is beyond the last step."""

    def take(self, read_at: int) -> Decoded:
        """The rows that have become complete since the last call.

        `read_at`: all rings have been read since then (UTC ns). 0: they have been read to the end.
        """

    def discard(self) -> None:
        """Drop what was not taken yet: it makes no sense."""

    def state(self) -> dict[str, Any]:
        """All that a successor needs to go on, as JSON. Call it after `take`."""
