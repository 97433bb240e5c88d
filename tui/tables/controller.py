"""The step at the cursor: its figures in each pane, its requests in the active one."""

from __future__ import annotations

from textual.app import ComposeResult

from fdtrace.replayer.replay.workload_replay import Cancelled
from fdtrace.tui.background import Deliver
from fdtrace.tui.navigation.counts import CountPrefix
from fdtrace.tui.panes.controller import Panes
from fdtrace.tui.screen_protocol import Prompter, ReplayScreen
from fdtrace.tui.status_lines import one_line
from fdtrace.tui.tables.lower_area import LowerArea
from fdtrace.tui.tables.requests import StepRows, describe
from fdtrace.tui.tables.step_summary import StepSummary, SummaryLine

ROWS_AT_ONCE = 0.006
"""Seconds that the screen waits for the requests of a step: a third of a frame."""

ROOM_FOR_BOTH = 40
"""A screen with at least so many rows shows the summary beside the inspector."""


class Tables:
    """Shows the summary at once and the requests when they are read; scrolls the area below the charts."""

    def __init__(
        self, screen: ReplayScreen, panes: Panes, lower: LowerArea, prompt: Prompter, count: CountPrefix
    ) -> None:
        self.screen, self.panes, self.lower, self.prompt, self.count = screen, panes, lower, prompt, count
        self.summary = StepSummary(id="summary", markup=False)
        self._rows = screen.background(
            "rows", self._rows_read, self._rows_failed, finish_begun=True, wait=ROWS_AT_ONCE
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
            SummaryLine(
                pane.number,
                pane.job.replay.name,
                pane.active,
                pane.series,
                self.panes.absence_text(pane, step),
            )
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

    def _rows_read(self, result: StepRows) -> None:
        series, look = result.series, self.screen.look()
        if series is self.panes.current.series:
            title = describe(result.step, series.name, result.rows, series.limit, look.glyphs)
            self.lower.requests.show(result.rows, title, look.palette)

    def _rows_failed(self, error: str) -> None:
        self.lower.requests.show((), one_line(error), self.screen.look().palette)

    def filter(self, text: str) -> None:
        """Show only the requests that contain a text."""
        self.lower.requests.filter(text)
        self.screen.say()

    def close(self) -> bool:
        """Select nothing, and show all requests. Returns whether that changed anything."""
        table = self.lower.requests
        changed = table.selected is not None or bool(table.pattern)
        table.selected = None
        table.filter("")
        self.screen.say()
        return changed

    # Keys

    def find(self) -> None:
        """Ask for a part of the requests' ids, or their kind."""
        self.prompt.ask("filter", self.lower.requests.pattern)

    def scroll(self, rows: int) -> None:
        """Go to the next row, or to the previous one; the inspector scrolls instead."""
        count = self.take_count()
        self.lower.shown.move(rows * count)

    def take_count(self) -> int:
        """The count typed before this key, else 1."""
        count = self.count.take(self.screen.clock())
        self.count.clear()
        return count or 1

    def scroll_page(self, pages: int) -> None:
        """Scroll by pages of rows."""
        self.lower.shown.scroll_pages(pages)
