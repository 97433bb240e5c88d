"""The figures of the step at the cursor, one line for each pane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text
from textual.widgets import Static

from fdtrace.recorder.printable import printable
from fdtrace.tui.panes.series import Series
from fdtrace.tui.theme import Look, Palette

NAME_WIDTH = 14


@dataclass(frozen=True)
class Line:
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


class StepSummary(Static):
    """One line for each pane: the budget of the step at the cursor, what ran, and by how much it exceeds the limit."""

    DEFAULT_CSS = (
        "StepSummary { height: auto; width: 1fr; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }"
    )

    def show(self, step: int, lines: Sequence[Line], look: Look) -> None:
        """Show a step. The widget's height depends only on the number of lines."""
        width = self.size.width or 80
        text = Text("\n", no_wrap=True, overflow="crop").join(
            [_heading(step, width, look.palette), *(_line(step, line, width, look) for line in lines)]
        )
        self.update(text, layout=False)


def _fitting(width: int) -> list[tuple[str, str, int]]:
    room, columns = width - NAME_WIDTH, []
    for column in COLUMNS:
        room -= column[2]
        if room < 0:
            break
        columns.append(column)
    return columns


def _heading(step: int, width: int, palette: Palette) -> Text:
    text = Text(f"step {step}".ljust(NAME_WIDTH), style=palette.strong)
    for heading, _, cells in _fitting(width):
        text.append(heading.rjust(cells), style=palette.dim)
    return text


def _line(step: int, line: Line, width: int, look: Look) -> Text:
    glyphs, palette = look.glyphs, look.palette
    name = printable(f"{'>' if line.active else ' '}{line.number} {line.name}")
    if len(name) > NAME_WIDTH - 1:
        name = name[: NAME_WIDTH - 2] + glyphs.ellipsis
    text = Text(name.ljust(NAME_WIDTH), style=palette.strong if line.active else Style.null())
    if line.series is None or line.series.index(step) is None:
        return text.append(f"  {line.note}", style=palette.dim)
    for heading, column, cells in _fitting(width):
        value, style = _cell(line.series, (heading, column), step, look)
        text.append(value.rjust(cells), style=style)
    return text


def _cell(series: Series, heading_and_column: tuple[str, str], step: int, look: Look) -> tuple[str, Style]:
    (heading, column), palette = heading_and_column, look.palette
    ran = series.value("num_tokens", step) or 0
    excess = ran - series.limit
    if heading == "limit":
        return str(series.limit), Style.null()
    if heading == "excess":
        return (f"{look.glyphs.exceeded} +{excess}", palette.exceeded) if excess > 0 else ("0", palette.dim)
    if heading == "not admitted":
        at, values = series.index(step), series.history.columns.get(column)
        return (
            printable(values[at] or "-", 40) if at is not None and values is not None else "-"
        ), palette.dim
    value = series.value(column, step)
    if value is None:
        return "-", palette.dim
    return str(value), palette.exceeded if heading == "ran" and excess > 0 else Style.null()
