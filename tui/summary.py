"""The step at the cursor in figures, a line a pane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text
from textual.widgets import Static

from fdtrace.recorder.printable import printable
from fdtrace.tui.series import Series
from fdtrace.tui.style import Look, Palette

NAME_WIDTH = 14


@dataclass(frozen=True)
class Line:
    """One pane in the summary; `series` None: it is still being computed, `note` says how it stands."""

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
"""Heading, column of the history, width; the most important first: what does not fit is left out."""


class StepSummary(Static):
    """A line for each pane: what the step at the cursor was allowed, what ran, and by how much it exceeds."""

    DEFAULT_CSS = (
        "StepSummary { height: auto; width: 1fr; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }"
    )

    def show(self, step: int, lines: Sequence[Line], look: Look) -> None:
        """Show a step; the widget's height changes only with the number of lines."""
        width = self.size.width or 80
        text = Text("\n", no_wrap=True, overflow="crop").join(
            [_heading(step, width, look.palette), *(_line(step, line, width, look) for line in lines)]
        )
        self.update(text, layout=False)


def _fitting(width: int) -> list[tuple[str, str, int]]:
    left, out = width - NAME_WIDTH, []
    for column in COLUMNS:
        left -= column[2]
        if left < 0:
            break
        out.append(column)
    return out


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
        return text.append("  " + (line.note or absence(line.series, step)), style=palette.dim)
    for heading, column, cells in _fitting(width):
        value, style = _cell(line.series, (heading, column), step, look)
        text.append(value.rjust(cells), style=style)
    return text


def absence(series: Series | None, step: int) -> str:
    """Why there is nothing to show at a step."""
    if series is None or not len(series):
        return "no steps"
    hang = series.history.outcome.hang
    if hang is not None and step >= hang.step:
        return printable(f"hangs since step {hang.step}: {hang.cause}")
    if step >= series.end:
        return f"finished at step {series.end - 1}"
    return "not started yet" if step < series.first else "lost: this step is not in the recording"


def _cell(series: Series, of: tuple[str, str], step: int, look: Look) -> tuple[str, Style]:
    (heading, column), palette = of, look.palette
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
