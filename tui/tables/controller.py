"""The step at the cursor: its figures in each pane, its requests in the active one."""

from __future__ import annotations

from textual.app import ComposeResult

from fdtrace.replayer.replay.run import Cancelled
from fdtrace.tui.background import Deliver
from fdtrace.tui.navigation.counts import Count
from fdtrace.tui.panes.controller import Panes
from fdtrace.tui.screen import Asks, ReplayScreen
from fdtrace.tui.status_lines import one_line
from fdtrace.tui.tables.lower_area import LowerArea
from fdtrace.tui.tables.requests import StepRows, describe
from fdtrace.tui.tables.step_summary import Line, StepSummary

ROWS_AT_ONCE = 0.006
"""Seconds that the screen waits for the requests of a step: a third of a frame."""

ROOM_FOR_BOTH = 40
"""Rows of a screen from which on the summary stays beside the inspector."""


class Tables:
    """Shows the summary at once, the requests when they are fetched; scrolls whatever stands below the charts."""

    def __init__(
        self, screen: ReplayScreen, panes: Panes, lower: LowerArea, prompt: Asks, count: Count
    ) -> None:
        self.screen, self.panes, self.lower, self.prompt, self.count = screen, panes, lower, prompt, count
        self.summary = StepSummary(id="summary", markup=False)
        self._rows = screen.background(
            "rows", self._have_rows, self._rows_failed, finish_begun=True, wait=ROWS_AT_ONCE
        )

    def compose(self) -> ComposeResult:
        """The summary."""
        yield self.summary

    def show_step(self) -> None:
        """Show the step at the cursor."""
        step = self.screen.session.cursor
        self.summary.display = not self.lower.inspecting or self.screen.size.height >= ROOM_FOR_BOTH
        if not self.summary.display:
            return
        lines = [
            Line(pane.number, pane.job.replay.name, pane.active, pane.series, self.panes.absence(pane, step))
            for pane in self.panes
            if pane.display
        ]
        if self.summary.styles.height is None or self.summary.size.height != len(lines) + 1:
            self.summary.styles.height = len(lines) + 1
        self.summary.show(step, lines, self.screen.look())
        self._want_rows()

    def _want_rows(self) -> None:
        pane, step, look = self.panes.current, self.screen.session.cursor, self.screen.look()
        if pane.series is None or pane.series.index(step) is None:
            title = f"step {step} {look.glyphs.dot} {pane.job.replay.name}: not in this history"
            self.lower.requests.show((), title, look.palette)
            return
        series = pane.series

        def work(deliver: Deliver[StepRows], _cancelled: Cancelled) -> None:
            deliver(StepRows(series, step, series.history.rows(step)))

        self._rows.want(work)

    def _have_rows(self, found: StepRows) -> None:
        series, look = found.series, self.screen.look()
        if series is self.panes.current.series:
            title = describe(found.step, series.name, found.rows, series.limit, look.glyphs)
            self.lower.requests.show(found.rows, title, look.palette)

    def _rows_failed(self, error: str) -> None:
        self.lower.requests.show((), one_line(error), self.screen.look().palette)

    def filter(self, text: str) -> None:
        """Show the requests alone that hold a text."""
        self.lower.requests.filter(text)
        self.screen.say()

    def close(self) -> bool:
        """Select nothing, and show all requests; whether there was anything to undo."""
        table = self.lower.requests
        was = table.selected is not None or bool(table.pattern)
        table.selected = None
        table.filter("")
        self.screen.say()
        return was

    # Keys

    def find(self) -> None:
        """Ask for a part of requests' ids, or their kind."""
        self.prompt.ask("filter", self.lower.requests.pattern)

    def scroll(self, rows: int) -> None:
        """The next row, or the one before; the inspector scrolls."""
        count = self.take_count()
        self.lower.shown.move(rows * count)

    def take_count(self) -> int:
        """The count typed before this key, else 1."""
        count = self.count.take(self.screen.clock())
        self.count.clear()
        return count or 1

    def scroll_page(self, pages: int) -> None:
        """A page of rows."""
        self.lower.shown.scroll_pages(pages)
