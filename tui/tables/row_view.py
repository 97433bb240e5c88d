"""The base class of widgets that show rows. They do their own scrolling, and draw only the rows on the screen."""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.content import Content
from textual.strip import Strip
from textual.widget import Widget

from fdtrace.recorder.printable import printable
from fdtrace.tui.theme import Palette


class RowView(Widget):
    """Rows of one line each, below `HEADING` lines that do not scroll. All rows are in memory already.

    It does its own scrolling. Textual's ScrollView computes the layout of the whole screen again when the number of
    rows changes, and that number changes at almost every step.
    """

    HEADING: ClassVar[int] = 1

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.top = 0
        """The first row on the screen."""
        self._palette: Palette | None = None
        self._base = Style.null()

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        raise NotImplementedError

    def subtitle(self) -> str:
        """The text of the lower border."""
        raise NotImplementedError

    def heading(self, width: int, palette: Palette) -> Strip:
        """The line above the rows."""
        raise NotImplementedError

    def row(self, at: int, width: int, palette: Palette) -> Strip:
        """One row."""
        raise NotImplementedError

    @property
    def visible_rows(self) -> int:
        """Rows that fit on the screen."""
        return max(1, self.size.height - self.HEADING)

    def span(self) -> str:
        """Which rows are on the screen; empty if all are."""
        last = min(self.top + self.visible_rows, self.num_rows)
        return f"{self.top + 1}-{last} of {self.num_rows}" if self.num_rows > self.visible_rows else ""

    def entitle(self, title: str) -> None:
        """Set the text of the upper border."""
        self.border_title = Content(printable(title)[: max(0, self.size.width - 4)])

    def scroll_rows(self, rows: int) -> None:
        """Scroll down by rows; a negative number scrolls up."""
        self.top = max(0, min(self.top + rows, self.num_rows - self.visible_rows))
        self.border_subtitle = Content(printable(self.subtitle()))
        self.refresh()

    def bring_in_sight(self, at: int) -> None:
        """Scroll just so far that a row is visible."""
        self.scroll_rows(min(0, at - self.top) or max(0, at - self.top - self.visible_rows + 1))

    def scroll_pages(self, pages: int) -> None:
        """Scroll by pages; a page is as many rows as are visible."""
        self.scroll_rows(pages * self.visible_rows)

    def move(self, rows: int) -> None:
        """What `j` and `k` do: go to the next row, or to the previous one."""
        self.scroll_rows(rows)

    def row_under(self, y: int) -> int | None:
        """The row on line `y` of the widget; None: there is none."""
        at = y - self.HEADING + self.top
        return at if self.top <= at < self.num_rows else None

    def on_resize(self) -> None:
        self.scroll_rows(0)

    def wheel(self, direction: int) -> None:
        """The mouse wheel turned: 1 downwards, -1 upwards."""
        self.scroll_rows(3 * direction)

    def on_mouse_scroll_down(self) -> None:
        self.wheel(1)

    def on_mouse_scroll_up(self) -> None:
        self.wheel(-1)

    def render_line(self, y: int) -> Strip:
        """The heading, or one row."""
        width = self.size.width
        if y == 0:
            self._base = self.rich_style
        at, palette = y - self.HEADING + self.top, self._palette
        if palette is None or at >= self.num_rows:
            return Strip.blank(width, self._base)
        return self.heading(width, palette) if y < self.HEADING else self.row(at, width, palette)

    def line(self, text: str, style: Style, width: int) -> Strip:
        """A text in one style, cut or padded to a width."""
        return Strip([Segment(text[:width].ljust(width), self._base + style)], width)
