"""The inspector's panel: a column of text for each pane. All columns scroll together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.message import Message
from textual.strip import Strip

from fdtrace.tui.tables.row_view import RowView

LEAST_WIDTH = 44
"""The least width of a column in cells. If there is less room, only the active pane's column is shown."""


class InspectorPanel(RowView):
    """Shows given lines, in columns side by side if they fit."""

    DEFAULT_CSS = """
    InspectorPanel { height: 1fr; min-height: 6; border: round $primary; border-title-style: bold;
                     border-title-color: $foreground; border-subtitle-color: $foreground; }
    InspectorPanel.-ascii { border: ascii ansi_cyan; }
    """

    HEADING = 0

    class Closed(Message):
        """A click on the border's title closed it."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._columns: list[list[Strip]] = []
        self._width = 0

    def places(self, shown: Sequence[int], active: int) -> tuple[list[int], int]:
        """The shown panes that have a column, and the width of a column in cells."""
        width = max(1, self.size.width)
        chosen = list(shown) if width // max(1, len(shown)) >= LEAST_WIDTH else [active]
        return chosen, width // len(chosen) - (1 if len(chosen) > 1 else 0)

    def show(self, order: Sequence[int], lines: Mapping[int, list[Text]], width: int, title: str) -> None:
        """Show a column of `width` for each pane in `order`; a pane without lines has an empty column."""
        self._base, self._width = self.rich_style, width
        self._columns = [[self._strip(line) for line in lines.get(at, [])] for at in order]
        self.entitle(title)
        self.scroll_rows(0)

    def _strip(self, text: Text) -> Strip:
        base = self._base + (text.style if isinstance(text.style, Style) else Style.null())
        return Strip([Segment(text.plain[: self._width].ljust(self._width), base)], self._width)

    @property
    def text(self) -> str:
        """All lines, column after column."""
        return "\n".join(strip.text.rstrip() for column in self._columns for strip in column)

    @property
    def num_rows(self) -> int:
        """Lines of the longest column."""
        return max(map(len, self._columns), default=0)

    def subtitle(self) -> str:
        """The lines on the screen, and what a key does."""
        span = self.span()
        return f"{span}, j/k scroll" if span else "Enter closes"

    def scroll_pages(self, pages: int) -> None:
        """Scroll by pages; one line of the page before stays visible."""
        self.scroll_rows(pages * max(1, self.size.height - 1))

    def on_click(self, event: events.Click) -> None:
        if event.y == 0 or event.chain == 2:
            self.post_message(self.Closed())

    def render_line(self, y: int) -> Strip:
        """One row of all columns."""
        width = self.size.width
        at = y + self.top
        empty = Strip([Segment(" " * self._width, self._base)], self._width)
        edge = Segment("|" if self.has_class("-ascii") else "│", self._base + Style(dim=True))
        parts: list[Segment] = []
        for number, column in enumerate(self._columns):
            if number:
                parts.append(edge)
            parts.extend(column[at] if at < len(column) else empty)
        return Strip(parts).adjust_cell_length(width, self._base)
