"""What fills a pane: a replay that is computed while the screen is in use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from recorder.errors import FdtraceError
from recorder.recording import MISSING, Recording
from replayer.history import History, How, Outcome, StepRow
from tui.series import Series

Progress = Callable[[float], None]
"""Called with the share done, 0 to 1, as often as the computation likes: it only notes it."""

Cancelled = Callable[[], bool]
"""Whether the computation is to stop; it may then return or raise what it likes."""

Rows = Callable[[int], list[StepRow]]

State = Literal["waiting", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class Replay:
    """A pane to be filled: the formula's name, how it is replayed, and what computes its history."""

    name: str
    how: How
    compute: Callable[[Progress, Cancelled], History]


@dataclass
class Job:
    """One replay's computation: written by the thread that computes, read by the screen.

    `error` is a sentence for the pane. The state is set last, so that whoever sees `done` sees the series.
    """

    replay: Replay
    state: State = "waiting"
    share: float = 0.0
    series: Series | None = None
    error: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Ask it to stop; a computation that is waiting never starts."""
        self._stop.set()
        if self.state == "waiting":
            self.state = "cancelled"

    def again(self) -> Job:
        """The same replay, not begun."""
        return Job(self.replay)

    def run(self) -> None:
        """Compute, in the calling thread. A failure ends in `error`: its pane shows it, others go on."""
        if self._stop.is_set():
            self.state = "cancelled"
            return
        self.state = "running"
        try:
            series = Series(self.replay.compute(self._progress, self._stop.is_set))
        except FdtraceError as error:
            self.error = str(error)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
        else:
            self.series = series
        self.state = "cancelled" if self._stop.is_set() else "failed" if self.series is None else "done"

    def _progress(self, share: float) -> None:
        self.share = min(max(share, 0.0), 1.0)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "failed", "cancelled")


def recorded_history(recording: Recording, rows: Rows | None = None) -> History:
    """The recording itself as a history, under `max_num_batched_tokens`.

    `rows` gives the requests of a step; without it the screen shows none. Steps in which a token count is not
    known (MISSING) count as 0 tokens.
    """
    limit = recording.engine.max_num_batched_tokens
    columns = {name: column for name, column in recording.steps.items() if column.dtype != object}
    ran = np.maximum(np.asarray(columns["num_tokens"], dtype=np.int64), 0)
    excess = ran[ran > limit] - limit
    reserved = columns.get("reserved_bytes")
    finished = recording.finished_step
    unfinished = int(np.count_nonzero((finished == MISSING) & (recording.aborted_step == MISSING)))
    outcome = Outcome(
        num_steps=len(ran),
        num_exceeded=len(excess),
        max_excess=int(excess.max()) if len(excess) else 0,
        peak_tokens=int(ran.max()) if len(ran) else 0,
        total_tokens=int(ran.sum()),
        budget_use=float(ran.mean() / limit) if len(ran) and limit else 0.0,
        num_refused_tokens=None,
        num_preemptions=_total(recording, "num_preempted"),
        num_stalls=_total(recording, "num_stalled"),
        num_unfinished=unfinished,
        reserved_high_water=int(reserved.max()) if reserved is not None and (reserved > 0).any() else None,
    )
    return History("recorded", "recorded", limit, {**columns, "num_tokens": ran}, outcome, rows or _no_rows)


def _total(recording: Recording, column: str) -> int:
    values = recording.steps.get(column)
    return 0 if values is None else int(np.maximum(values, 0).sum())


def _no_rows(_step: int) -> list[StepRow]:
    return []
