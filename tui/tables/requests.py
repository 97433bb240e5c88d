"""The requests of the step at the cursor, as a table that draws only the rows on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip

from fdtrace.recorder.printable import printable
from fdtrace.replayer.model.events import StepRow
from fdtrace.tui.panes.series import Series
from fdtrace.tui.tables.row_view import RowView
from fdtrace.tui.theme import Glyphs, Palette

COLUMNS = (
    ("kind", 8),
    ("tokens", 8),
    ("computed before", 16),
    ("drafts", 8),
    ("accepted", 10),
    ("blocks", 8),
)
MIN_ID, MAX_ID = 10, 40


class StepRows(NamedTuple):
    """The requests of a step of a history."""

    series: Series
    step: int
    rows: Sequence[StepRow]


class RequestTable(RowView):
    """The requests of a step, filtered by a text; one may be selected."""

    DEFAULT_CSS = """
    RequestTable { height: 1fr; min-height: 4; border: round $foreground 30%; border-title-style: bold;
                   border-title-color: $foreground; border-subtitle-color: $foreground; }
    RequestTable.-ascii { border: ascii ansi_white; }
    """

    class Chosen(Message):
        """A click on the row that is already selected."""

        def __init__(self, request_id: str) -> None:
            super().__init__()
            self.request_id = request_id

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.all: Sequence[StepRow] = ()
        self.rows: Sequence[StepRow] = ()
        self.pattern = ""
        self.selected: str | None = None
        self._id_width = MIN_ID

    def show(self, rows: Sequence[StepRow], title: str, palette: Palette) -> None:
        """Show the rows of a step; the scroll position stays."""
        self.all, self._palette = rows, palette
        widest = max((len(printable(row.request_id, MAX_ID)) for row in rows), default=0) + 1
        self._id_width = max(MIN_ID, min(MAX_ID, widest))
        self.entitle(title)
        self.filter(self.pattern)

    def filter(self, pattern: str) -> None:
        """Show only the rows whose request or kind contains a text; an empty text shows all."""
        self.pattern = pattern
        text = pattern.lower()
        self.rows = [row for row in self.all if text in row.request_id.lower() or text in row.kind]
        self.scroll_rows(0)

    @property
    def num_rows(self) -> int:
        """Rows that pass the filter."""
        return len(self.rows)

    def subtitle(self) -> str:
        """The filter with its matches, and which rows are on the screen."""
        matches = f"/{self.pattern}: {len(self.rows)} of {len(self.all)} " if self.pattern else ""
        return matches + self.span()

    def move(self, rows: int) -> None:
        """Select a row below, or above; if none is selected, the first one on the screen."""
        if not self.rows:
            return
        ids = [row.request_id for row in self.rows]
        at = ids.index(self.selected) + rows if self.selected in ids else self.top
        at = max(0, min(at, len(ids) - 1))
        self.selected = ids[at]
        self.bring_in_sight(at)

    def on_click(self, event: events.Click) -> None:
        at = self.row_under(event.get_content_offset_capture(self).y)
        if at is None:
            return
        request = self.rows[at].request_id
        if request == self.selected:
            self.post_message(self.Chosen(request))
        self.selected = request
        self.refresh()

    def heading(self, width: int, palette: Palette) -> Strip:
        """The names of the columns."""
        return self.line(self._text("request", [name for name, _ in COLUMNS]), palette.dim, width)

    def row(self, at: int, width: int, palette: Palette) -> Strip:
        """One request."""
        row = self.rows[at]
        values = [
            printable(row.kind, 8), str(row.num_tokens), str(row.num_computed_tokens),
            _decode_value(row.num_draft_tokens, row), _decode_value(row.num_accepted_tokens, row),
            "-" if row.num_blocks is None else str(row.num_blocks),
        ]  # fmt: skip
        style = palette.strong if row.kind == "prefill" else palette.blank
        if row.request_id == self.selected:
            style += palette.cursor + Style(underline=True)
        return self.line(self._text(row.request_id, values), style, width)

    def _text(self, request: str, values: Sequence[str]) -> str:
        cells = (value.rjust(cells) for value, (_, cells) in zip(values, COLUMNS, strict=True))
        return printable(request, MAX_ID)[: self._id_width - 1].ljust(self._id_width) + "".join(cells)


def _decode_value(value: int, row: StepRow) -> str:
    return str(value) if row.kind == "decode" else "-"


def describe(step: int, name: str, rows: Sequence[StepRow], limit: int, glyphs: Glyphs) -> str:
    """What a step ran, as a sum: `2 prefills 819 + 61 decodes 305 = 1124, exceeds 1024 by 100`."""
    terms = []
    for kind in ("prefill", "decode"):
        of_kind = [row.num_tokens for row in rows if row.kind == kind]
        if of_kind:
            terms.append(f"{len(of_kind)} {kind}{'s' if len(of_kind) > 1 else ''} {sum(of_kind)}")
    head = f"step {step} {glyphs.dot} {name}"
    if not terms:
        return f"{head}: no requests known"
    total = sum(row.num_tokens for row in rows)
    verdict = f"exceeds {limit} by {total - limit}" if total > limit else f"limit {limit}"
    return f"{head}: {' + '.join(terms)} = {total}, {verdict}"
