"""The inspector's panel: a column of words for each pane, scrolled together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.segment import Segment
from rich.style import Style
from rich.text import Text
from textual import events
from textual.content import Content
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from fdtrace.recorder.printable import printable

LEAST = 44
"""Fewest cells of a column: where there is less room, only the active pane's is shown."""


class InspectorPanel(Widget):
    """Shows lines that are there already; columns side by side where they fit."""

    DEFAULT_CSS = """
    InspectorPanel { height: 3fr; min-height: 6; display: none; border: round $primary;
                     border-title-style: bold; border-title-color: $foreground;
                     border-subtitle-color: $foreground; }
    InspectorPanel.-ascii { border: ascii ansi_cyan; }
    """

    class Closed(Message):
        """A click on the border's title closed it."""

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.top = 0
        self._columns: list[list[Strip]] = []
        self._width = 0
        self._base = Style.null()

    def places(self, shown: Sequence[int], active: int) -> tuple[list[int], int]:
        """Which of the shown panes have a column, and its width in cells."""
        width = max(1, self.size.width)
        chosen = list(shown) if width // max(1, len(shown)) >= LEAST else [active]
        return chosen, width // len(chosen) - (1 if len(chosen) > 1 else 0)

    def show(self, order: Sequence[int], lines: Mapping[int, list[Text]], width: int, title: str) -> None:
        """Show a column of `width` for each of `order`; one that is missing is empty."""
        self._base, self._width = self.rich_style, width
        self._columns = [[self._strip(line) for line in lines.get(at, [])] for at in order]
        self.border_title = Content(printable(title)[: max(0, self.size.width - 4)])
        self.scroll_rows(0)

    def _strip(self, text: Text) -> Strip:
        base = self._base + (text.style if isinstance(text.style, Style) else Style.null())
        return Strip([Segment(text.plain[: self._width].ljust(self._width), base)], self._width)

    @property
    def text(self) -> str:
        """All lines, column after column."""
        return "\n".join(strip.text.rstrip() for column in self._columns for strip in column)

    def scroll_rows(self, rows: int) -> None:
        """Scroll by rows; below 0 upwards."""
        height, count = max(1, self.size.height), max(map(len, self._columns), default=0)
        self.top = max(0, min(self.top + rows, count - height))
        hidden = count > height
        last = min(count, self.top + height)
        self.border_subtitle = Content(
            f"{self.top + 1}-{last} of {count}, j/k scroll" if hidden else "Enter closes"
        )
        self.refresh()

    def scroll_pages(self, pages: int) -> None:
        """Scroll by what is visible."""
        self.scroll_rows(pages * max(1, self.size.height - 1))

    def on_mouse_scroll_down(self) -> None:
        self.scroll_rows(3)

    def on_mouse_scroll_up(self) -> None:
        self.scroll_rows(-3)

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
