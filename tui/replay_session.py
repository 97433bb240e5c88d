"""What the screen shows, apart from how: the recording, its replays, the one cursor, the one window. No terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fdtrace.recorder.trace.recording import Recording
from fdtrace.replayer.history.as_recorded import recorded_history
from fdtrace.replayer.history.history import History
from fdtrace.tui.panes.jobs import Job, PaneReplay
from fdtrace.tui.panes.layout import Scale
from fdtrace.tui.panes.series import Series, Window
from fdtrace.tui.sources import Sources

MAX_PANES = 5
"""Panes side by side at most; more are reached by paging."""

PANE_WIDTH = 20
"""Fewest columns of a pane."""

WIDE_PANE = 38
"""Columns of a pane from which on the recording has one beside a full page of formulas."""


class ReplaySession:
    """A recording and its replays: jobs in their order, the recording's first; which are on the screen; where one is.

    `recorded` is the recording as a series. `following`: the cursor goes with the end of a recording in progress.
    """

    def __init__(
        self,
        recording: Recording,
        recorded: Series,
        jobs: Sequence[Job],
        sources: Sources,
        step: int | None = None,
    ) -> None:
        """`step` is where the cursor starts, by default the first exceeded one."""
        self.recording, self.recorded, self.sources = recording, recorded, sources
        self.jobs = list(jobs)
        self.active = 0
        self.page = 0
        self.alone = False
        self.following = False
        self.window = Window.over(recorded.first, recorded.end)
        first = recorded.exceeded_after(recorded.first - 1)
        wanted = step if step is not None else first if first is not None else recorded.first
        self.cursor = self.clamp(wanted)

    def clamp(self, step: int) -> int:
        """The nearest step that any pane has room for."""
        return max(self.window.low, min(self.window.high - 1, step))

    @property
    def done(self) -> list[Series]:
        """The histories that are there."""
        return [job.series for job in self.jobs if job.state == "done" and job.series is not None]

    @property
    def scale(self) -> Scale:
        """One scale for all panes."""
        return Scale.of(self.done)

    def widen(self, series: Series) -> None:
        """Give a history that is there since then its room on the axis."""
        if len(series):
            hang = series.history.outcome.hang
            end = series.end if hang is None else max(series.end, hang.step + 1)
            self.window = self.window.widened(series.first, end)

    def visible(self, width: int) -> list[int]:
        """The jobs on a screen of `width` columns: the recording and a page of the others, or one alone."""
        if self.alone:
            return [self.active]
        room = _room(width) - 1
        others = list(range(1, len(self.jobs)))
        pages = max(1, -(-len(others) // room))
        self.page %= pages
        start = max(0, min(self.page * room, len(others) - room))
        return [0, *others[start : start + room]]

    def has_pages(self, width: int) -> bool:
        """Whether not all panes fit."""
        return len(self.jobs) > _room(width)

    def move(self, step: int) -> None:
        """Put the cursor on a step, and move the window where it left it."""
        self.cursor = self.clamp(step)
        if not self.window.start <= self.cursor < self.window.end:
            self.window = self.window.around(self.cursor)

    def move_to_end(self) -> None:
        """Put the cursor on the last recorded step, and the window where that is its last one."""
        last, window = self.recorded.end - 1, self.window
        if (window.start, window.end) != (window.low, window.high):
            self.window = window.at(last + 1 - window.span, window.span)
        self.move(max(last, window.low))

    def grow(self, recording: Recording, recorded: Series) -> None:
        """The recording has come further."""
        self.recording, self.recorded = recording, recorded
        self.widen(recorded)


def _room(width: int) -> int:
    """How many panes fit side by side: up to four, and one more where each stays wide."""
    return MAX_PANES if width >= MAX_PANES * WIDE_PANE else max(2, min(MAX_PANES - 1, width // PANE_WIDTH))


def recorded_job(recording: Recording, recorded: History | None, sources: Sources) -> Job:
    """The recording's own pane: it has nothing to compute. `recorded` is its history, where that is there already."""
    history = recorded or recorded_history(recording, sources.rows)
    if history.request_steps is None and sources.request_steps is not None:
        history = replace(history, request_steps=sources.request_steps)
    job = Job(PaneReplay(history.name, history.how, lambda _progress, _cancelled: history))
    job.run()
    return job
