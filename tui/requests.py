"""The requests of the step at the cursor: a table that draws only the rows on the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from rich.style import Style
from textual.content import Content
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from replayer.history import StepRow
from tui.style import Glyphs, Palette

COLUMNS = (
    ("kind", 8),
    ("tokens", 8),
    ("computed before", 16),
    ("drafts", 8),
    ("accepted", 10),
    ("blocks", 8),
)
MIN_ID, MAX_ID = 10, 40


class RequestTable(ScrollView, can_focus=False):
    """Rows of a step. It is handed rows that are already in memory; it fetches nothing."""

    DEFAULT_CSS = """
    RequestTable { height: 1fr; min-height: 4; border: round $foreground 30%; border-title-style: bold;
                   border-title-color: $foreground; }
    RequestTable.-ascii { border: ascii ansi_white; scrollbar-size-vertical: 0; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: Sequence[StepRow] = ()
        self._limit = 0
        self._stale = False
        self._palette: Palette | None = None
        self._id_width = MIN_ID

    def show(self, rows: Sequence[StepRow], palette: Palette) -> None:
        """Show the rows of a step, from its top."""
        self._rows, self._palette, self._stale = rows, palette, False
        self._id_width = min(MAX_ID, max((len(row.request_id) for row in rows), default=0) + 1)
        self._id_width = max(self._id_width, MIN_ID)
        self.virtual_size = Size(self._id_width + sum(cells for _, cells in COLUMNS), len(rows) + 1)
        self.scroll_to(y=0, animate=False, immediate=True)
        self.refresh()

    def wait(self) -> None:
        """Dim the rows shown: they belong to another step until the next `show`."""
        if not self._stale:
            self._stale = True
            self.refresh()

    def title(self, text: str) -> None:
        """Set the words in the border."""
        self.border_title = Content(text[: max(0, self.size.width - 2)])

    def scroll_rows(self, rows: int) -> None:
        """Scroll by rows; below 0 upwards."""
        self.scroll_to(y=self.scroll_offset.y + rows, animate=False, immediate=True)

    def scroll_pages(self, pages: int) -> None:
        """Scroll by what is visible."""
        self.scroll_rows(pages * max(1, self.size.height - 1))

    @property
    def rows(self) -> Sequence[StepRow]:
        """The rows shown."""
        return self._rows

    def render_line(self, y: int) -> Strip:
        """The heading, which does not scroll, or one row."""
        width, palette = self.size.width, self._palette
        if palette is None:
            return Strip.blank(width, self.rich_style)
        if y == 0:
            return self._strip(self._text("request", [name for name, _ in COLUMNS]), palette.dim, width)
        at = y - 1 + self.scroll_offset.y
        if at >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        row = self._rows[at]
        values = [
            row.kind, str(row.num_tokens), str(row.num_computed_tokens),
            _some(row.num_draft_tokens, row), _some(row.num_accepted_tokens, row),
            "-" if row.num_blocks is None else str(row.num_blocks),
        ]  # fmt: skip
        style = palette.dim if self._stale else palette.strong if row.kind == "prefill" else Style.null()
        return self._strip(self._text(row.request_id, values), style, width)

    def _text(self, request: str, values: Sequence[str]) -> str:
        cells = (value.rjust(cells) for value, (_, cells) in zip(values, COLUMNS, strict=True))
        return request[: self._id_width - 1].ljust(self._id_width) + "".join(cells)

    def _strip(self, text: str, style: Style, width: int) -> Strip:
        base = self.rich_style + style
        text = text[self.scroll_offset.x :]
        return Strip([Segment(text, base)], len(text)).adjust_cell_length(width, self.rich_style)


def _some(value: int, row: StepRow) -> str:
    return str(value) if row.kind == "decode" else "-"


def describe(step: int, name: str, rows: Sequence[StepRow], limit: int, glyphs: Glyphs) -> str:
    """What a step ran as a sum: `2 prefills 819 + 61 decodes 305 = 1124, limit 1024: exceeded by 100`."""
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
