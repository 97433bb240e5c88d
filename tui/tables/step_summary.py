"""The figures of the step at the cursor, one line for each pane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text
from textual.widgets import Static

from fdtrace.recorder.printable import printable
from fdtrace.recorder.trace.columns_on_demand import entry_of
from fdtrace.tui.panes.series import Series
from fdtrace.tui.theme import Look, Palette

NAME_WIDTH = 14


@dataclass(frozen=True)
class SummaryLine:
    """One pane in the summary. `note` says why it has no such step, or (`series` None) no history yet."""

    number: int
    name: str
    active: bool
    series: Series | None
    note: str = ""


COLUMNS = (
    ("budget", "token_budget", 7),
    ("scheduled", "num_scheduled_tokens", 10),
    ("ran", "num_tokens", 7),
    ("limit", "", 7),
    ("excess", "", 9),
    ("prefill", "num_prefill_tokens", 8),
    ("decode", "num_decode_tokens", 7),
    ("running", "num_running", 8),
    ("waiting", "num_waiting", 8),
    ("free blocks", "num_free_blocks", 12),
    ("preempted", "num_preempted", 10),
    ("stalled", "num_stalled", 8),
    ("drafts", "num_draft_tokens", 7),
    ("accepted", "num_accepted_tokens", 9),
    ("not admitted", "not_admitted", 13),
)
"""(heading, column of the history, width). The most important come first; those that do not fit are left out."""

SummaryColumn = tuple[str, str, int]


class StepSummary(Static):
    """One line for each pane: the budget of the step at the cursor, what ran, and by how much it exceeds the limit."""

    DEFAULT_CSS = (
        "StepSummary { height: auto; width: 1fr; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }"
    )

    def show(self, step: int, lines: Sequence[SummaryLine], look: Look) -> None:
        """Show a step. The widget's height depends only on the number of lines."""
        columns = _fitting(self.size.width or 80)
        text = Text("\n", no_wrap=True, overflow="crop").join(
            [_heading(step, columns, look.palette), *(_line(step, line, columns, look) for line in lines)]
        )
        self.update(text, layout=False)


def _fitting(width: int) -> list[SummaryColumn]:
    room, columns = width - NAME_WIDTH, []
    for column in COLUMNS:
        room -= column[2]
        if room < 0:
            break
        columns.append(column)
    return columns


def _heading(step: int, columns: Sequence[SummaryColumn], palette: Palette) -> Text:
    text = Text(f"step {step}".ljust(NAME_WIDTH), style=palette.strong)
    for heading, _, cells in columns:
        text.append(heading.rjust(cells), style=palette.dim)
    return text


def _line(step: int, line: SummaryLine, columns: Sequence[SummaryColumn], look: Look) -> Text:
    glyphs, palette = look.glyphs, look.palette
    name = printable(f"{'>' if line.active else ' '}{line.number} {line.name}")
    if len(name) > NAME_WIDTH - 1:
        name = name[: NAME_WIDTH - 2] + glyphs.ellipsis
    text = Text(name.ljust(NAME_WIDTH), style=palette.strong if line.active else Style.null())
    at = None if line.series is None else line.series.index(step)
    if line.series is None or at is None:
        return text.append(f"  {line.note}", style=palette.dim)
    for heading, column, cells in columns:
        value, style = _cell(line.series, (heading, column), at, look)
        text.append(value.rjust(cells), style=style)
    return text


def _cell(series: Series, heading_and_column: tuple[str, str], at: int, look: Look) -> tuple[str, Style]:
    (heading, column), palette = heading_and_column, look.palette
    if heading == "limit":
        return str(series.limit), Style.null()
    if heading == "excess":
        excess = (series.value_at("num_tokens", at) or 0) - series.limit
        return (f"{look.glyphs.exceeded} +{excess}", palette.exceeded) if excess > 0 else ("0", palette.dim)
    if heading == "not admitted":
        columns = series.history.columns
        return printable(entry_of(columns, column, at) or "-", 40) if column in columns else "-", palette.dim
    value = series.value_at(column, at)
    if value is None:
        return "-", palette.dim
    return str(value), palette.exceeded if heading == "ran" and value > series.limit else Style.null()
