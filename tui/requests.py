"""The requests of the step at the cursor: a table that draws only the rows on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.content import Content
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from fdtrace.recorder.printable import printable
from fdtrace.replayer.history import StepRow
from fdtrace.tui.series import Series
from fdtrace.tui.style import Glyphs, Palette

COLUMNS = (
    ("kind", 8),
    ("tokens", 8),
    ("computed before", 16),
    ("drafts", 8),
    ("accepted", 10),
    ("blocks", 8),
)
MIN_ID, MAX_ID = 10, 40


ROWS_AT_ONCE = 0.006
"""Seconds that the screen waits for the requests of a step: a third of a frame."""


class StepRows(NamedTuple):
    """The requests of a step of a history."""

    series: Series
    step: int
    rows: Sequence[StepRow]


class RequestTable(Widget):
    """Rows of a step. It is handed rows that are already in memory; it fetches nothing.

    It scrolls by itself: a ScrollView lays the whole screen out anew whenever the number of rows changes,
    which is at almost every step.
    """

    DEFAULT_CSS = """
    RequestTable { height: 1fr; min-height: 4; border: round $foreground 30%; border-title-style: bold;
                   border-title-color: $foreground; border-subtitle-color: $foreground; }
    RequestTable.-ascii { border: ascii ansi_white; }
    """

    class Chosen(Message):
        """A click on the row that was selected already."""

        def __init__(self, request_id: str) -> None:
            super().__init__()
            self.request_id = request_id

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.all: Sequence[StepRow] = ()
        self.rows: Sequence[StepRow] = ()
        self.pattern = ""
        self.top = 0
        self.selected: str | None = None
        self._palette: Palette | None = None
        self._id_width = MIN_ID
        self._base = Style.null()

    def show(self, rows: Sequence[StepRow], title: str, palette: Palette) -> None:
        """Show the rows of a step, from where the last one was scrolled to."""
        self.all, self._palette = rows, palette
        widest = max((len(printable(row.request_id, MAX_ID)) for row in rows), default=0) + 1
        self._id_width = max(MIN_ID, min(MAX_ID, widest))
        self.border_title = Content(printable(title)[: max(0, self.size.width - 4)])
        self.filter(self.pattern)

    def filter(self, pattern: str) -> None:
        """Show the rows alone whose request or kind holds a text; all where it is empty."""
        self.pattern = pattern
        wanted = pattern.lower()
        self.rows = [row for row in self.all if wanted in row.request_id.lower() or wanted in row.kind]
        self.scroll_rows(0)

    def select(self, direction: int) -> None:
        """Select the row below, or above; the one on the screen's top where none is."""
        if not self.rows:
            return
        ids = [row.request_id for row in self.rows]
        at = ids.index(self.selected) + direction if self.selected in ids else self.top
        at = max(0, min(at, len(ids) - 1))
        self.selected = ids[at]
        height = max(1, self.size.height - 1)
        self.scroll_rows(min(0, at - self.top) or max(0, at - self.top - height + 1))

    def scroll_rows(self, rows: int) -> None:
        """Scroll by rows; below 0 upwards."""
        height = max(1, self.size.height - 1)
        self.top = max(0, min(self.top + rows, len(self.rows) - height))
        hidden = len(self.rows) > height
        last = min(self.top + height, len(self.rows))
        shown = f"{self.top + 1}-{last} of {len(self.rows)}" if hidden else ""
        found = f"/{self.pattern}: {len(self.rows)} of {len(self.all)} " if self.pattern else ""
        self.border_subtitle = Content(printable(found) + shown)
        self.refresh()

    def scroll_pages(self, pages: int) -> None:
        """Scroll by what is visible."""
        self.scroll_rows(pages * max(1, self.size.height - 1))

    def on_resize(self) -> None:
        self.scroll_rows(0)

    def on_mouse_scroll_down(self) -> None:
        self.scroll_rows(3)

    def on_mouse_scroll_up(self) -> None:
        self.scroll_rows(-3)

    def on_click(self, event: events.Click) -> None:
        at = event.get_content_offset_capture(self).y - 1 + self.top
        if not self.top <= at < len(self.rows):
            return
        request = self.rows[at].request_id
        if request == self.selected:
            self.post_message(self.Chosen(request))
        self.selected = request
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """The heading, which does not scroll, or one row."""
        width, palette = self.size.width, self._palette
        if y == 0:
            self._base = self.rich_style
        if palette is None:
            return Strip.blank(width, self._base)
        if y == 0:
            return self._strip(self._text("request", [name for name, _ in COLUMNS]), palette.dim, width)
        at = y - 1 + self.top
        if at >= len(self.rows):
            return Strip.blank(width, self._base)
        row = self.rows[at]
        values = [
            printable(row.kind, 8), str(row.num_tokens), str(row.num_computed_tokens),
            _some(row.num_draft_tokens, row), _some(row.num_accepted_tokens, row),
            "-" if row.num_blocks is None else str(row.num_blocks),
        ]  # fmt: skip
        style = palette.strong if row.kind == "prefill" else palette.blank
        if row.request_id == self.selected:
            style += palette.cursor + Style(underline=True)
        return self._strip(self._text(row.request_id, values), style, width)

    def _text(self, request: str, values: Sequence[str]) -> str:
        cells = (value.rjust(cells) for value, (_, cells) in zip(values, COLUMNS, strict=True))
        return printable(request, MAX_ID)[: self._id_width - 1].ljust(self._id_width) + "".join(cells)

    def _strip(self, text: str, style: Style, width: int) -> Strip:
        return Strip([Segment(text[:width].ljust(width), self._base + style)], width)


def _some(value: int, row: StepRow) -> str:
    return str(value) if row.kind == "decode" else "-"


def describe(step: int, name: str, rows: Sequence[StepRow], limit: int, glyphs: Glyphs) -> str:
    """What a step ran as a sum: `2 prefills 819 + 61 decodes 305 = 1124, exceeds 1024 by 100`."""
    parts = []
    for kind in ("prefill", "decode"):
        of_kind = [row.num_tokens for row in rows if row.kind == kind]
        if of_kind:
            parts.append(f"{len(of_kind)} {kind}{'s' if len(of_kind) > 1 else ''} {sum(of_kind)}")
    head = f"step {step} {glyphs.dot} {name}"
    if not parts:
        return f"{head}: no requests known"
    total = sum(row.num_tokens for row in rows)
    verdict = f"exceeds {limit} by {total - limit}" if total > limit else f"limit {limit}"
    return f"{head}: {' + '.join(parts)} = {total}, {verdict}"
