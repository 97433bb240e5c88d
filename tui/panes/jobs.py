"""The content of a pane: a replay that is computed while the screen is in use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.config import Policy
from fdtrace.replayer.formulas import Formula
from fdtrace.replayer.history.history import History, How
from fdtrace.replayer.replay.workload_replay import Cancelled
from fdtrace.replayer.workload.workload import Workload
from fdtrace.tui.background import sentence
from fdtrace.tui.panes.series import Series

ShareDone = Callable[[float], None]
"""Called with the share done, 0 to 1, any number of times: it only stores it."""


JobState = Literal["waiting", "running", "done", "failed", "cancelled"]


@dataclass(frozen=True)
class PaneReplay:
    """A pane to be filled: the formula's name, how it is replayed, and what computes its history.

    The inspector needs `formula` for the arithmetic of a budget, and `policy` (None: the recorded one) for the
    decisions of a rescheduled step. `text` is the text that the replay was made from, as `-f` of the command takes it.
    `recording` gives the recording that it was computed from, if that is not the screen's: one in progress has grown
    since. `workload` gives the scheduled workload, if that is not the recorded one.
    """

    name: str
    how: How
    compute: Callable[[ShareDone, Cancelled], History]
    formula: Formula | None = None
    policy: Policy | None = None
    text: str = ""
    recording: Callable[[], Recording | None] = lambda: None
    workload: Callable[[], Workload] | None = None


@dataclass
class Job:
    """One replay's computation: written by the thread that computes, read by the screen.

    `error` is a sentence for the pane. The state is set last: a reader that sees `done` also sees the series.
    """

    replay: PaneReplay
    state: JobState = "waiting"
    share: float = 0.0
    series: Series | None = None
    error: str = ""
    _stop: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Ask the computation to stop; one that is still waiting never starts."""
        self._stop.set()
        if self.state == "waiting":
            self.state = "cancelled"

    def filled(self, history: History, series: Series) -> Job:
        """A job of the same pane with a history that exists already."""
        replay = replace(self.replay, compute=lambda _progress, _cancelled: history)
        return Job(replay, "done", 1.0, series)

    def again(self) -> Job:
        """A new job for the same replay."""
        return Job(self.replay)

    def run(self) -> None:
        """Compute in the calling thread. A failure is stored in `error`: its pane shows it, and the others go on."""
        if self._stop.is_set():
            self.state = "cancelled"
            return
        self.state = "running"
        try:
            series = Series(self.replay.compute(self._progress, self._stop.is_set))
        except BaseException as error:  # a formula of the user's may raise anything, SystemExit too
            self.error = sentence(error)
        else:
            self.series = series
        self.state = "cancelled" if self._stop.is_set() else "failed" if self.series is None else "done"

    def _progress(self, share: float) -> None:
        self.share = min(max(share, 0.0), 1.0)

    @property
    def ended(self) -> bool:
        """Whether the job has ended."""
        return self.state in ("done", "failed", "cancelled")
