"""What the screen shows, apart from how: panes, the one cursor, the one window. No terminal."""

from __future__ import annotations

from collections.abc import Sequence

from fdtrace.tui.keys import MAX_PANES
from fdtrace.tui.panes.jobs import Job
from fdtrace.tui.panes.layout import Scale
from fdtrace.tui.panes.series import Series, Window

PANE_WIDTH = 20
"""Fewest columns of a pane."""

WIDE_PANE = 38
"""Columns of a pane from which on the recording has one beside a full page of formulas."""


class Board:
    """The jobs in their order, the recording first; which of them are on the screen; cursor and window."""

    def __init__(self, recorded: Series, jobs: Sequence[Job], step: int | None = None) -> None:
        self.jobs = list(jobs)
        self.active = 0
        self.page = 0
        self.alone = False
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


def _room(width: int) -> int:
    """How many panes fit side by side: up to four, and one more where each stays wide."""
    return MAX_PANES if width >= MAX_PANES * WIDE_PANE else max(2, min(MAX_PANES - 1, width // PANE_WIDTH))
