"""A query's rows as a table; a row with a `step` leads there."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.content import Content
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from fdtrace.recorder.printable import printable
from fdtrace.tui.sources import Answer
from fdtrace.tui.style import Palette

MOST_WIDTH = 40
"""Cells of a column at most."""

SAMPLE = 500
"""Rows that a column's width is taken from."""


class AnswerTable(Widget):
    """Rows that are in memory; draws those on the screen alone."""

    DEFAULT_CSS = """
    AnswerTable { height: 1fr; min-height: 5; display: none; border: round $primary;
                  border-title-style: bold; border-title-color: $foreground;
                  border-subtitle-color: $foreground; }
    AnswerTable.-ascii { border: ascii ansi_cyan; }
    """

    class Moved(Message):
        """Another row was selected; `step` None: its row names none."""

        def __init__(self, step: int | None) -> None:
            super().__init__()
            self.step = step

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.answer = Answer((), ())
        self.at = 0
        self.top = 0
        self._widths: list[int] = []
        self._palette: Palette | None = None
        self._base = Style.null()

    def entitle(self, title: str) -> None:
        """Name the query, once the table has its place on the screen."""
        self.border_title = Content(printable(title)[: max(0, self.size.width - 4)])
        self.move(0)

    def show(self, answer: Answer, palette: Palette) -> None:
        """Show rows, the first one selected."""
        self.answer, self.at, self.top, self._palette = answer, 0, 0, palette
        sample = [[_cell(value) for value in row] for row in answer.rows[:SAMPLE]]
        self._widths = [
            min(MOST_WIDTH, max([len(_cell(name)), *(len(row[at]) for row in sample)])) + 2
            for at, name in enumerate(answer.columns)
        ]
        self.move(0)

    @property
    def step(self) -> int | None:
        """The step that the selected row names."""
        if "step" not in self.answer.columns or not self.answer.rows:
            return None
        value = self.answer.rows[self.at][self.answer.columns.index("step")]
        return int(value) if isinstance(value, int) else None

    def move(self, rows: int) -> None:
        """Select a row below, or above."""
        count, height = len(self.answer.rows), max(1, self.size.height - 1)
        self.at = max(0, min(self.at + rows, count - 1))
        self.top = max(0, min(self.top, self.at))
        self.top = max(self.top, self.at - height + 1)
        more = "+" if self.answer.more else ""
        leads = ": j/k step through them" if "step" in self.answer.columns else ""
        where = f"row {self.at + 1} of {count}{more}{leads}" if count else "no rows"
        self.border_subtitle = Content(f"{where}, Esc closes")
        self.refresh()
        if rows:
            self.post_message(self.Moved(self.step))

    def page(self, pages: int) -> None:
        """Select a row a page away."""
        self.move(pages * max(1, self.size.height - 2))

    def on_mouse_scroll_down(self) -> None:
        self.move(1)

    def on_mouse_scroll_up(self) -> None:
        self.move(-1)

    def on_click(self, event: events.Click) -> None:
        at = event.get_content_offset_capture(self).y - 1 + self.top
        if self.top <= at < len(self.answer.rows):
            self.at = at
            self.move(0)
            self.post_message(self.Moved(self.step))

    def render_line(self, y: int) -> Strip:
        """The heading, or one row."""
        width, palette = self.size.width, self._palette
        if y == 0:
            self._base = self.rich_style
        at = y - 1 + self.top
        if palette is None or at >= len(self.answer.rows):
            return Strip.blank(width, self._base)
        if y == 0:
            return self._strip([_cell(name) for name in self.answer.columns], self._base + palette.dim, width)
        style = self._base + palette.cursor + palette.strong if at == self.at else self._base
        return self._strip([_cell(value) for value in self.answer.rows[at]], style, width)

    def _strip(self, cells: list[str], style: Style, width: int) -> Strip:
        text = "".join(cell[: size - 2].ljust(size) for cell, size in zip(cells, self._widths, strict=True))
        return Strip([Segment(text[:width].ljust(width), style)], width)


def _cell(value: object) -> str:
    return "" if value is None else printable(value, 4 * MOST_WIDTH)
