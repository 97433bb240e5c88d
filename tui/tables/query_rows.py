"""A query's rows as a table. If a row names a `step`, selecting it moves the cursor to that step."""

from __future__ import annotations

from collections.abc import Sequence

from textual import events
from textual.message import Message
from textual.strip import Strip

from fdtrace.recorder.printable import printable
from fdtrace.tui.sources import Answer
from fdtrace.tui.tables.row_view import RowView
from fdtrace.tui.theme import Palette

MOST_WIDTH = 40
"""Cells of a column at most."""

SAMPLE = 500
"""Rows that decide the width of a column."""


class AnswerTable(RowView):
    """The rows of a query, one of them selected."""

    DEFAULT_CSS = """
    AnswerTable { height: 1fr; min-height: 5; border: round $primary; border-title-style: bold;
                  border-title-color: $foreground; border-subtitle-color: $foreground; }
    AnswerTable.-ascii { border: ascii ansi_cyan; }
    """

    class Moved(Message):
        """Another row was selected; `step` None: the row names no step."""

        def __init__(self, step: int | None) -> None:
            super().__init__()
            self.step = step

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.answer = Answer((), ())
        self.at = 0
        self._widths: list[int] = []

    def entitle_query(self, query: str) -> None:
        """Show the query in the border. Call it once the table has its size on the screen."""
        self.entitle(query)
        self.move(0)

    def show(self, answer: Answer, palette: Palette) -> None:
        """Show rows, and select the first one."""
        self.answer, self.at, self.top, self._palette = answer, 0, 0, palette
        sample = [[_cell(value) for value in row] for row in answer.rows[:SAMPLE]]
        self._widths = [
            min(MOST_WIDTH, max([len(_cell(name)), *(len(row[at]) for row in sample)])) + 2
            for at, name in enumerate(answer.columns)
        ]
        self.move(0)

    @property
    def num_rows(self) -> int:
        """Rows of the answer."""
        return len(self.answer.rows)

    @property
    def step(self) -> int | None:
        """The step that the selected row names; None: it names none."""
        if "step" not in self.answer.columns or not self.answer.rows:
            return None
        value = self.answer.rows[self.at][self.answer.columns.index("step")]
        return int(value) if isinstance(value, int) else None

    def subtitle(self) -> str:
        """The number of the selected row, and the number of rows."""
        count, more = self.num_rows, "+" if self.answer.more else ""
        hint = ": j/k step through them" if "step" in self.answer.columns else ""
        return f"{f'row {self.at + 1} of {count}{more}{hint}' if count else 'no rows'}, Esc closes"

    def move(self, rows: int) -> None:
        """Select a row below, or above."""
        self.at = max(0, min(self.at + rows, self.num_rows - 1))
        self.bring_in_sight(self.at)
        if rows:
            self.post_message(self.Moved(self.step))

    def scroll_pages(self, pages: int) -> None:
        """Select a row a page away."""
        self.move(pages * max(1, self.size.height - 2))

    def wheel(self, direction: int) -> None:
        """Select the next row, or the previous one."""
        self.move(direction)

    def on_click(self, event: events.Click) -> None:
        at = self.row_under(event.get_content_offset_capture(self).y)
        if at is not None:
            self.at = at
            self.move(0)
            self.post_message(self.Moved(self.step))

    def heading(self, width: int, palette: Palette) -> Strip:
        """The names of the columns."""
        return self.line(self._text([_cell(name) for name in self.answer.columns]), palette.dim, width)

    def row(self, at: int, width: int, palette: Palette) -> Strip:
        """One row of the answer."""
        style = palette.cursor + palette.strong if at == self.at else palette.blank
        return self.line(self._text([_cell(value) for value in self.answer.rows[at]]), style, width)

    def _text(self, cells: Sequence[str]) -> str:
        return "".join(cell[: size - 2].ljust(size) for cell, size in zip(cells, self._widths, strict=True))


def _cell(value: object) -> str:
    return "" if value is None else printable(value, 4 * MOST_WIDTH)
