"""A pane's chart as rows of text: tokens of each step below and above the limit, events, memory, axis.

The limit is a row of its own, the fence. Below it an area shows 0 to the limit; above it the tokens over the limit have
the same scale. A column that exceeds by a single token breaks the fence, so no zoom and no rounding hides it.

This module draws without plotext, which draws the report: for one of three panes at 200x50, plotext needs 12 ms for the
highest steps alone, and this module 1.6 ms for everything. A zoom redraws three panes and should be done in 50 ms, and
Textual's own painting takes half of that. `benchmarks/screen.py` measures both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray
from textual.strip import Strip

from fdtrace.recorder.printable import printable
from fdtrace.tui.panes.cells import (
    AXIS,
    BLANK,
    DEPARTS,
    EXCEEDED,
    LIMIT,
    MEAN,
    MIXED,
    OTHER,
    PEAK,
    Classes,
    Codes,
    Pen,
    eighths_of,
)  # fmt: skip
from fdtrace.tui.panes.chart_rows import axis_row, event_row, exceeded_row, lag_row, memory_rows, queue_rows
from fdtrace.tui.panes.layout import Layout, Scale
from fdtrace.tui.panes.series import Envelope, Series, Window
from fdtrace.tui.theme import Look, memory_size, tokens

HANG_COLUMNS = 20
"""The hatched area of a hang shows its cause if it has at least so many columns."""


@dataclass(frozen=True)
class Chart:
    """Rows of a chart, the columns left of its plot, and the columns of the plot."""

    rows: list[Strip]
    left: int
    width: int


def draw(
    series: Series,
    window: Window,
    size: tuple[int, int],
    scale: Scale,
    look: Look,
    *,
    departs: int | None = None,
    breaks: Sequence[int] = (),
) -> Chart:
    """The chart of a series in `size` (columns, rows). `departs`: from this step on it is another history."""
    width, height = size
    layout = Layout.of(height, series.limit, scale)
    left = _label_width(series, scale, layout, width)
    columns = max(1, width - left)
    envelope = series.envelope(window, columns)
    pen = Pen(look, left, columns)
    rows = _tokens_rows(pen, series, scale, layout, _View(window, envelope, departs))
    rows.append(exceeded_row(pen, envelope, series.exceeded_in(window)))
    if layout.events:
        rows.append(event_row(pen, envelope))
    if layout.lag:
        in_lockstep = series.history.outcome.order == "lockstep"
        rows.append(lag_row(pen, series.lags(window, columns), in_lockstep=in_lockstep))
    if layout.queues:
        rows.extend(queue_rows(pen, series.queues(window, columns), scale))
    if layout.memory:
        rows.extend(memory_rows(pen, envelope, layout.memory, scale))
    rows.append(axis_row(pen, window, departs, breaks))
    return Chart(rows, left, columns)


def _label_width(series: Series, scale: Scale, layout: Layout, width: int) -> int:
    labels = [tokens(series.limit), tokens(scale.tokens), f"{min(len(series.over), 99999)}"]
    if layout.memory:
        labels.append(memory_size(scale.reserved))
    if layout.queues:
        labels.append("wait")
    if layout.lag:
        labels.append("lag")
    return min(max(map(len, labels)) + 1, max(1, width // 2))


@dataclass(frozen=True)
class _View:
    """The window, its envelope, and where the history departs from the recording."""

    window: Window
    envelope: Envelope
    departs: int | None = None

    def other_from(self, columns: int) -> int | None:
        """The first column that shows another history than the recording; None: there is none in the window."""
        if self.departs is None or self.departs >= self.window.end:
            return None
        return self.window.column(self.departs, columns) or 0


def _tokens_rows(pen: Pen, series: Series, scale: Scale, layout: Layout, view: _View) -> list[Strip]:
    """Rows above the fence, the fence, rows below it, top to bottom."""
    envelope, eighth = view.envelope, layout.below * 8 / max(series.limit, 1)
    breach = envelope.exceeded > 0
    over = np.where(breach, np.maximum(np.ceil((envelope.peak - series.limit) * eighth), 1), 0)
    peak = np.minimum(np.ceil(envelope.peak * eighth), layout.below * 8)
    mean = np.minimum(np.round(envelope.mean * eighth), peak)
    void = _void(pen, series, view)
    above = _fill(_over_cells(pen, over, layout.above), void)
    below = _fill(_under_cells(pen, mean, peak, layout.below), void)
    _mark_other(pen, view, above, below)
    _write_hang(pen, series, view, below)
    fence = np.where(breach, ord(pen.glyphs.breach), ord(pen.glyphs.fence)).astype(np.uint32)
    classes = np.where(breach, EXCEEDED, LIMIT).astype(np.uint8)
    top = tokens(scale.tokens) if scale.tokens > series.limit else ""
    rows = [pen.row(above[0][index], above[1][index], "" if index else top) for index in range(layout.above)]
    rows.append(pen.row(fence, classes, tokens(series.limit), pen.palette.exceeded))
    last = layout.below - 1
    rows += [
        pen.row(below[0][index], below[1][index], "0" if index == last else "")
        for index in range(layout.below)
    ]
    return rows


def _write_hang(pen: Pen, series: Series, view: _View, below: tuple[Codes, Classes]) -> None:
    """Write why it hangs into the middle of the hatched area, if there is room for the words."""
    hang = series.history.outcome.hang
    if hang is None:
        return
    codes, classes = below
    hatched = np.flatnonzero(view.window.edges(pen.columns)[0] >= hang.step)
    lines = wrap(
        printable(f"HANGS at {hang.step}: {hang.cause.partition(' (')[0]}"), max(1, len(hatched) - 4)
    )
    if len(hatched) < HANG_COLUMNS or len(lines) + 2 > len(codes):
        return
    top, left, width = (len(codes) - len(lines)) // 2, int(hatched[0]) + 1, len(hatched) - 2
    for index, line in enumerate(["", *lines, ""], top - 1):
        codes[index, left : left + width] = pen.code(line.center(width))
        classes[index, left : left + width] = EXCEEDED


def _mark_other(pen: Pen, view: _View, *parts: tuple[Codes, Classes]) -> None:
    """Show another history in other colours, with a line of dots where it departs."""
    first = view.other_from(pen.columns)
    if first is None or view.departs is None:
        return
    for codes, classes in parts:
        classes[:, first:] = OTHER[classes[:, first:]]
        if view.window.start <= view.departs:
            empty = codes[:, first] == 32
            codes[empty, first], classes[empty, first] = ord(pen.glyphs.departure), DEPARTS


def _over_cells(pen: Pen, height: NDArray[np.float64], rows: int) -> tuple[Codes, Classes]:
    eighths = eighths_of(height, rows)
    codes = pen.code(pen.glyphs.above)[np.minimum(eighths, 8)]
    codes[0][eighths[0] > 8] = ord(pen.glyphs.cut)
    return codes, np.where(eighths > 0, EXCEEDED, BLANK).astype(np.uint8)


def _under_cells(
    pen: Pen, mean: NDArray[np.float64], peak: NDArray[np.float64], rows: int
) -> tuple[Codes, Classes]:
    """Bright up to the mean, dim up to the peak. If both end in one cell, it shows the peak."""
    low, high = np.minimum(eighths_of(mean, rows), 8), np.minimum(eighths_of(peak, rows), 8)
    mixed = (high == 8) & (low > 0) & (low < 8) & pen.glyphs.mixes
    codes = pen.code(pen.glyphs.area)[np.where(mixed, low, high)]
    classes = np.where(high == 0, BLANK, np.where(mixed, MIXED, np.where(low * 2 >= high, MEAN, PEAK)))
    return codes, classes.astype(np.uint8)


def _void(pen: Pen, series: Series, view: _View) -> tuple[Codes, Classes]:
    """The filling of empty cells: nothing, or a hatch if the replay hangs there or steps were lost."""
    codes, classes = pen.blank()
    starts, ends = view.window.edges(pen.columns)
    lost = ~view.envelope.present & (ends > series.first) & (starts < series.end)
    codes[lost], classes[lost] = ord(pen.glyphs.lost), AXIS
    hang = series.history.outcome.hang
    if hang is not None:
        codes[starts >= hang.step], classes[starts >= hang.step] = ord(pen.glyphs.hang), LIMIT
    return codes, classes


def _fill(cells: tuple[Codes, Classes], void: tuple[Codes, Classes]) -> tuple[Codes, Classes]:
    empty = cells[1] == BLANK
    return np.where(empty, void[0], cells[0]).astype(np.uint32), np.where(empty, void[1], cells[1])
