"""What the screen asks others for. Everything here is called in workers: it may read files and databases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.as_recorded import RowsOfStep
from fdtrace.replayer.model.events import StepRow
from fdtrace.tui.panes.jobs import PaneReplay


@dataclass(frozen=True)
class StepEvent:
    """One event of a recorded step; `request_id` empty: it concerns none."""

    kind: str
    request_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Answer:
    """The rows of a query; `more`: there are more than these."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    more: bool = False


@dataclass(frozen=True)
class NewSteps:
    """What a recording in progress has grown by: columns as in `Recording.steps`, and whether it goes on.

    `silent_s`: seconds since its collector published it last. `standstill`: how the engine stands still; empty: it does
    not.
    """

    steps: Mapping[str, NDArray[Any]]
    live: bool
    silent_s: float = 0.0
    standstill: str = ""

    def __len__(self) -> int:
        return len(self.steps["step"])


@dataclass(frozen=True)
class Sources:
    """Where the screen gets what is not in memory; None: there is no such thing here.

    Each may raise an FdtraceError, which the screen shows. `request_steps` and `events` tell of the recording;
    `event_steps` gives the steps of an event's kind. `replay_of` makes a replay of what `-f` of the command
    takes. Of a recording in progress `tail(step)` gives the steps recorded after a step, and `recording` all of
    it, as far as it has come.
    """

    rows: RowsOfStep | None = None
    request_steps: Callable[[str], list[tuple[int, StepRow]]] | None = None
    events: Callable[[int], list[StepEvent]] | None = None
    event_steps: Callable[[str], NDArray[np.int64]] | None = None
    sql: Callable[[str], Answer] | None = None
    replay_of: Callable[[str], PaneReplay] | None = None
    tail: Callable[[int], NewSteps] | None = None
    recording: Callable[[], Recording] | None = None
