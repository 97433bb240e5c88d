"""One pane: a formula's chart, its figures in the border, and the cursor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.content import Content
from textual.filter import ANSIToTruecolor, LineFilter
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from fdtrace.recorder.printable import printable
from fdtrace.replayer.history.history import ORDERS
from fdtrace.tui.panes.border import figures
from fdtrace.tui.panes.draw_chart import Chart, draw
from fdtrace.tui.panes.jobs import Job
from fdtrace.tui.panes.layout import Scale
from fdtrace.tui.panes.series import Series, Window
from fdtrace.tui.theme import Glyphs, Look

BAR = 20
"""Width of the progress bar in cells."""

NEAR = 3
"""Two columns at most so far apart are repainted as one region: a second region costs more than the columns between."""


class ChartPane(Widget):
    """A chart of one history. The window, the cursor and the scale are the app's, the same for all panes.

    The chart is drawn once for a window and a size. A cursor move repaints the column that it leaves and the column
    that it enters.
    """

    DEFAULT_CSS = """
    ChartPane { width: 1fr; height: 1fr; border: round $foreground 30%; border-title-style: bold;
                border-title-color: $foreground; border-subtitle-align: left;
                border-subtitle-color: $foreground; }
    ChartPane.-exceeds { border-subtitle-color: $text-error; border-subtitle-style: bold; }
    ChartPane.-active { border: heavy $primary; }
    ChartPane.-ascii { border: ascii ansi_white; }
    ChartPane.-ascii.-active { border: ascii ansi_cyan; }
    ChartPane.-hidden { display: none; }
    """

    class Picked(Message):
        """The mouse picked a step in a pane."""

        def __init__(self, pane: ChartPane, step: int, *, dragged: bool = False) -> None:
            super().__init__()
            self.pane, self.step, self.dragged = pane, step, dragged

    class Stopped(Message):
        """A right click on a step."""

        def __init__(self, step: int) -> None:
            super().__init__()
            self.step = step

    class Opened(Message):
        """A double click on a chart."""

    class Zoomed(Message):
        """The wheel turned over a step."""

        def __init__(self, factor: float, step: int) -> None:
            super().__init__()
            self.factor, self.step = factor, step

    def __init__(self, job: Job, look: Callable[[], Look], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.job = job
        self._look = look
        self.number = 0
        self.active = False
        self._window = Window.over(0, 1)
        self._cursor = 0
        self._scale = Scale(1)
        self.departs: int | None = None
        """From this step on it is another history than the recording."""
        self.breaks: tuple[int, ...] = ()
        """Steps with a breakpoint."""
        self.seen = ""
        self._chart: Chart | None = None
        self._drawn_with = look()
        self._column: int | None = None

    @property
    def series(self) -> Series | None:
        """The history shown; None while it is being computed, or if that failed."""
        return self.job.series if self.job.state == "done" else None

    @property
    def note(self) -> str:
        """The state of the replay if it has no history yet; empty: it has one."""
        state = self.job.state
        return "" if state == "done" else f"{state} {self.job.share:.0%}" if state == "running" else state

    def on_mount(self) -> None:
        self.set_class(self._look().glyphs.border == "ascii", "-ascii")

    def show(self, window: Window, cursor: int, scale: Scale) -> None:
        """Show a window. Redraws if the window or the scale has changed."""
        if (window, scale) != (self._window, self._scale):
            self._window, self._scale, self._cursor = window, scale, cursor
            self._chart = None
            self.refresh()
        else:
            self.move_cursor(cursor)

    def move_cursor(self, cursor: int) -> None:
        """Move the cursor. Repaints two columns."""
        self._cursor = cursor
        if self._chart is None:
            return
        previous, self._column = self._column, self._cursor_column()
        columns = sorted(column for column in (previous, self._column) if column is not None)
        if columns and previous != self._column:
            height, first, last = self.content_size.height, columns[0], columns[-1]
            if last - first <= NEAR:
                self.refresh(Region(first, 0, last - first + 1, height))
            else:
                self.refresh(*(Region(column, 0, 1, height) for column in columns))

    def redraw(self) -> None:
        """Draw the chart again at the next paint, and the border's text now."""
        self._chart = None
        self.refresh()
        self.retitle()

    def retitle(self) -> None:
        """Set the texts of the border: the longest that fit."""
        glyphs = self._look().glyphs
        room = max(0, self.size.width - 4)
        name = printable(self.job.replay.name, 200)
        mark = "*" if self.active and glyphs.border == "ascii" else ""
        how_text: str = self.job.replay.how
        order = None if self.series is None else self.series.history.outcome.order
        if order is not None and order != "lockstep":
            how_text += f", {ORDERS[order]}"
        long_title, short_title = (
            f"{self.number}{mark} {name} {glyphs.dot} {how_text}",
            f"{self.number}{mark} {name}",
        )
        self.border_title = Content(
            _fit([long_title if how_text != name else short_title, short_title], room, glyphs)
        )
        series = self.series
        exceeds_or_hangs = series is not None and bool(len(series.over) or series.history.outcome.hang)
        self.set_class(exceeds_or_hangs, "-exceeds")
        self.border_subtitle = Content(_fit(figures(self.job, self.series, glyphs), room, glyphs))

    def on_resize(self) -> None:
        self.redraw()

    def _cursor_column(self) -> int | None:
        if self._chart is None:
            return None
        column = self._window.column(self._cursor, self._chart.width)
        return None if column is None else self._chart.left + column

    def _draw(self) -> Chart:
        width, height = self.content_size
        series = self.series
        if series is None:
            return self._plain(self._words(), width, height)
        if not len(series):
            return self._plain(["no steps"], width, height)
        look = replace(self._look(), base=self.rich_style)
        return draw(
            series, self._window, (width, height), self._scale, look, departs=self.departs, breaks=self.breaks
        )

    def _words(self) -> list[str]:
        """The text in a pane that has no chart."""
        job = self.job
        return {
            "waiting": ["waits for the replay before it"],
            "running": [printable(f"replaying {job.replay.name}"), self._bar(), "x cancels"],
            "cancelled": ["cancelled", "x starts it anew"],
            "failed": [
                "this replay failed",
                "",
                *map(printable, job.error.splitlines()),
                "",
                "x starts it anew",
            ],
        }.get(job.state, [])

    def _plain(self, lines: list[str], width: int, height: int) -> Chart:
        rows = [row.apply_style(self.rich_style) for row in _centred(lines, width, height)]
        return Chart(rows, 0, width)

    def _bar(self) -> str:
        glyphs = self._look().glyphs
        full = round(self.job.share * BAR)
        return f"{glyphs.area[8] * full}{glyphs.fence * (BAR - full)} {self.job.share:4.0%}"

    def get_line_filters(self) -> Sequence[LineFilter]:
        """All filters but the one that turns ANSI colours into RGB: charts have none, and it takes 20% of the time."""
        return [
            line_filter
            for line_filter in super().get_line_filters()
            if not isinstance(line_filter, ANSIToTruecolor)
        ]

    def render_line(self, y: int) -> Strip:
        """One row of the chart, with the cursor's column marked."""
        if self._chart is None:
            self._drawn_with = self._look()
            self._chart = self._draw()
            self._column = self._cursor_column() if self.series is not None else None
        if y >= len(self._chart.rows):
            return Strip.blank(self.content_size.width, self.rich_style)
        row = self._chart.rows[y]
        column = self._column
        if column is None or self.series is None or not 0 <= column < row.cell_length:
            return row
        return self._with_cursor(row, column)

    def _with_cursor(self, row: Strip, column: int) -> Strip:
        """A row with one cell marked: by its background, and by a line if the cell is empty."""
        look = self._drawn_with
        cells, position = list(row), 0
        for index, (text, style, _) in enumerate(cells):
            if position + len(text) > column:
                offset, base = column - position, style or Style.null()
                glyph = text[offset]
                mark = Segment(glyph, base + look.palette.cursor)
                if glyph == " ":
                    mark = Segment(look.glyphs.cursor, base + look.palette.cursor_blank)
                parts = [Segment(text[:offset], style), mark, Segment(text[offset + 1 :], style)]
                cells[index : index + 1] = [part for part in parts if part.text]
                break
            position += len(text)
        return Strip(cells, row.cell_length)

    def _step_under(self, event: events.MouseEvent) -> int | None:
        if self.series is None or self._chart is None:
            return None
        x = event.get_content_offset_capture(self).x - self._chart.left
        return self._window.step_at(x, self._chart.width)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        if event.button == 3:
            step = self._step_under(event)
            if step is not None:
                self.post_message(self.Stopped(step))
            return
        self.capture_mouse()
        self._pick(event)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self.app.mouse_captured is self:
            self._pick(event, dragged=True)

    def on_mouse_up(self) -> None:
        self.release_mouse()

    def on_click(self, event: events.Click) -> None:
        if event.chain == 2 and event.button == 1:
            self.post_message(self.Opened())

    def _pick(self, event: events.MouseEvent, *, dragged: bool = False) -> None:
        step = self._step_under(event)
        self.post_message(self.Picked(self, self._cursor if step is None else step, dragged=dragged))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._wheel(event, 0.5)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._wheel(event, 2)

    def _wheel(self, event: events.MouseEvent, factor: float) -> None:
        step = self._step_under(event)
        if step is not None:
            event.stop()
            self.post_message(self.Zoomed(factor, step))


def _fit(texts: list[str], room: int, glyphs: Glyphs) -> str:
    """The first text that fits; else the last one, cut."""
    for text in texts:
        if len(text) <= room:
            return text
    text = texts[-1]
    return text[: max(0, room - 1)] + glyphs.ellipsis if room > 0 else ""


def _centred(lines: list[str], width: int, height: int) -> list[Strip]:
    wrapped = [
        line[start : start + width] for line in lines for start in range(0, max(1, len(line)), max(1, width))
    ]
    top = max(0, (height - len(wrapped)) // 2)
    return [Strip.blank(width) for _ in range(top)] + [
        Strip([Segment(line.center(width))], width) for line in wrapped[: max(0, height - top)]
    ]
