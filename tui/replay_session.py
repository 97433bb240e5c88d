"""What the screen shows, without how: the recording, its replays, one cursor, one window. It needs no terminal."""

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
"""At most so many panes are side by side. The others are on further pages."""

PANE_WIDTH = 20
"""Fewest columns of a pane."""

WIDE_PANE = 38
"""If the screen has so many columns for each of `MAX_PANES` panes, it shows all of them; else at most one less."""


class ReplaySession:
    """A recording and its replays, which of them are on the screen, and the position of cursor and window.

    `jobs` are the replays in order; the recording's own job is the first. `recorded` is the recording as a series.
    `following`: the cursor stays at the end of a recording in progress.
    """

    def __init__(
        self,
        recording: Recording,
        recorded: Series,
        jobs: Sequence[Job],
        sources: Sources,
        step: int | None = None,
    ) -> None:
        """`step` is where the cursor starts; by default the first exceeded step."""
        self.recording, self.recorded, self.sources = recording, recorded, sources
        self.jobs = list(jobs)
        self.active = 0
        self.page = 0
        self.alone = False
        self.following = False
        self.window = Window.over(recorded.first, recorded.end)
        first_exceeded = recorded.exceeded_after(recorded.first - 1)
        start = recorded.first if first_exceeded is None else first_exceeded
        self.cursor = self.clamp(start if step is None else step)

    def clamp(self, step: int) -> int:
        """The nearest step that is on the axis of the panes."""
        return max(self.window.low, min(self.window.high - 1, step))

    @property
    def done(self) -> list[Series]:
        """The histories that are computed."""
        return [job.series for job in self.jobs if job.state == "done" and job.series is not None]

    @property
    def scale(self) -> Scale:
        """The scale of all panes."""
        return Scale.of(self.done)

    def widen(self, series: Series) -> None:
        """Extend the axis so that a new history fits on it, with the step at which it hangs."""
        if len(series):
            hang = series.history.outcome.hang
            end = series.end if hang is None else max(series.end, hang.step + 1)
            self.window = self.window.widened(series.first, end)

    def visible(self, width: int) -> list[int]:
        """Indices of the jobs on a screen of `width` columns: the recording and a page of the others, or one alone."""
        if self.alone:
            return [self.active]
        room = _room(width) - 1
        replays = list(range(1, len(self.jobs)))
        pages = max(1, -(-len(replays) // room))
        self.page %= pages
        start = max(0, min(self.page * room, len(replays) - room))
        return [0, *replays[start : start + room]]

    def has_pages(self, width: int) -> bool:
        """Whether the panes need more than one page."""
        return len(self.jobs) > _room(width)

    def move(self, step: int) -> None:
        """Put the cursor on a step. If the step is outside the window, the window moves there too."""
        self.cursor = self.clamp(step)
        if not self.window.start <= self.cursor < self.window.end:
            self.window = self.window.around(self.cursor)

    def move_to_end(self) -> None:
        """Put the cursor on the last recorded step, and move the window so that it ends there."""
        last, window = self.recorded.end - 1, self.window
        if (window.start, window.end) != (window.low, window.high):
            self.window = window.at(last + 1 - window.span, window.span)
        self.move(max(last, window.low))

    def grow(self, recording: Recording, recorded: Series) -> None:
        """Take the recording with its new steps."""
        self.recording, self.recorded = recording, recorded
        self.widen(recorded)


def _room(width: int) -> int:
    """How many panes fit side by side: up to four, or five if each of them is still wide."""
    return MAX_PANES if width >= MAX_PANES * WIDE_PANE else max(2, min(MAX_PANES - 1, width // PANE_WIDTH))


def recorded_job(recording: Recording, recorded: History | None, sources: Sources) -> Job:
    """The job of the recording's own pane. `recorded` is its history, if that is known already."""
    history = recorded or recorded_history(recording, sources.rows, counts_unfinished=False)
    if history.request_steps is None and sources.request_steps is not None:
        history = replace(history, request_steps=sources.request_steps)
    job = Job(PaneReplay(history.name, history.how, lambda _progress, _cancelled: history))
    job.run()
    return job
