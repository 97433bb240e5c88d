"""The base of the widgets that show rows: they scroll by themselves, and draw only the rows on the screen."""

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
    """Rows of one line each, below `HEADING` lines that do not scroll. It is handed what is in memory already.

    It scrolls by itself: a ScrollView lays the whole screen out anew whenever the number of rows changes, which is at
    almost every step.
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
        """Rows that there are."""
        raise NotImplementedError

    def subtitle(self) -> str:
        """What the border says below."""
        raise NotImplementedError

    def heading(self, width: int, palette: Palette) -> Strip:
        """The line above the rows."""
        raise NotImplementedError

    def row(self, at: int, width: int, palette: Palette) -> Strip:
        """One row."""
        raise NotImplementedError

    @property
    def visible_rows(self) -> int:
        """Rows that there is room for."""
        return max(1, self.size.height - self.HEADING)

    def span(self) -> str:
        """Which rows are on the screen, where not all are; else empty."""
        last = min(self.top + self.visible_rows, self.num_rows)
        return f"{self.top + 1}-{last} of {self.num_rows}" if self.num_rows > self.visible_rows else ""

    def entitle(self, title: str) -> None:
        """Set the words of the border."""
        self.border_title = Content(printable(title)[: max(0, self.size.width - 4)])

    def scroll_rows(self, rows: int) -> None:
        """Scroll by rows; below 0 upwards."""
        self.top = max(0, min(self.top + rows, self.num_rows - self.visible_rows))
        self.border_subtitle = Content(printable(self.subtitle()))
        self.refresh()

    def bring_in_sight(self, at: int) -> None:
        """Scroll as little as shows a row."""
        self.scroll_rows(min(0, at - self.top) or max(0, at - self.top - self.visible_rows + 1))

    def scroll_pages(self, pages: int) -> None:
        """Scroll by what is visible."""
        self.scroll_rows(pages * self.visible_rows)

    def move(self, rows: int) -> None:
        """What `j` and `k` do: the next row, or the one before."""
        self.scroll_rows(rows)

    def row_under(self, y: int) -> int | None:
        """The row in a line of the widget; None: there is none."""
        at = y - self.HEADING + self.top
        return at if self.top <= at < self.num_rows else None

    def on_resize(self) -> None:
        self.scroll_rows(0)

    def wheel(self, direction: int) -> None:
        """The wheel turned, 1 downwards or -1 upwards."""
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
        """A text of one style, cut or filled to a width."""
        return Strip([Segment(text[:width].ljust(width), self._base + style)], width)
