"""What the screen gets from outside. All of it is called in background threads: it may read files and databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.step_calls import StepCalls
from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.as_recorded import RowsOfStep
from fdtrace.replayer.model.events import StepRow
from fdtrace.replayer.rank_experiment import RankRun
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.replayer.replay.workload_replay import Cancelled
from fdtrace.tui.panes.jobs import PaneReplay


@dataclass(frozen=True)
class StepEvent:
    """One event of a recorded step; `request_id` is empty if it concerns no request."""

    kind: str
    request_id: str
    reason: str
    detail: str


@dataclass(frozen=True)
class Answer:
    """The rows of a query; `more`: the query has more rows than these."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[Any, ...]]
    more: bool = False


@dataclass(frozen=True)
class NewSteps:
    """New steps of a recording in progress: columns as in `Recording.steps`. `live`: the recording goes on.

    `silent_s`: seconds since its collector last published it. `standstill`: how the engine stands still; empty: it
    does not.
    """

    steps: Mapping[str, NDArray[Any]]
    live: bool
    silent_s: float = 0.0
    standstill: str = ""

    def __len__(self) -> int:
        return len(self.steps["step"])


@dataclass(frozen=True)
class Sources:
    """Functions that give the screen what is not in memory; None: this screen does not have it.

    Each may raise an FdtraceError, which the screen shows. `rows`, `request_steps` and `events` read the recording;
    `event_steps` gives the steps with a kind of event. `replay_of` makes a replay from a text as `-f` takes it. For a
    recording in progress, `tail(step)` gives the steps recorded after a step, and `recording` the whole recording so
    far. If calls and forwards do not come in pairs, `calls` gives the scheduling calls of a step, and `lags` gives for
    each step how many earlier forwards its call had not taken in (MISSING: unknown); otherwise both are None.
    `settings` are the names that a variant for `replay_of` may set. `batch_rows` gives what the requests of a recording
    ran in all its steps; None: there are too many. `ranks` computes all ranks of the trace: as recorded, then each
    replay of them that was asked for. `opens_ranks`: the screen opens with them.
    """

    rows: RowsOfStep | None = None
    request_steps: Callable[[str], list[tuple[int, StepRow]]] | None = None
    events: Callable[[int], list[StepEvent]] | None = None
    event_steps: Callable[[str], NDArray[np.int64]] | None = None
    sql: Callable[[str], Answer] | None = None
    replay_of: Callable[[str], PaneReplay] | None = None
    settings: Sequence[str] = ()
    tail: Callable[[int], NewSteps] | None = None
    recording: Callable[[], Recording] | None = None
    calls: Callable[[int], StepCalls | None] | None = None
    lags: Callable[[], NDArray[np.int64] | None] | None = None
    batch_rows: Callable[[Recording], BatchRowColumns | None] | None = None
    ranks: Callable[[Cancelled], Iterator[RankRun]] | None = None
    opens_ranks: bool = False
