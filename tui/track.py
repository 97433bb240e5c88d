"""A pane's chart as rows of text: tokens a step under and over the limit, events, memory, axis.

The limit is a row of its own, the fence: below it an area is scaled from 0 to the limit, above it by the same
scale what exceeds. A column that exceeds by a single token breaks the fence, so that no zoom and no rounding
hides it.

This is drawn here and not with plotext, which draws the report: of one of three panes at 200x50, plotext
draws the highest alone in 12 ms, where this draws everything in 1.6. A zoom redraws three, and is to settle
in 50 ms, of which Textual's own painting takes half. `benchmarks/screen.py` measures both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui.series import Envelope, Series, Window
from tui.style import Look, memory_size, tokens

Codes = NDArray[np.uint32]
Classes = NDArray[np.uint8]

BLANK, MEAN, PEAK, MIXED, EXCEEDED, LIMIT, MEMORY, AXIS, EVENT, DEPARTS = range(10)

OTHER = np.arange(13, dtype=np.uint8)
OTHER[[MEAN, PEAK, MIXED]] = [10, 11, 12]
"""The class of a cell that shows another history than the recording."""


@dataclass(frozen=True)
class Scale:
    """What panes side by side share: the most tokens and the most bytes that any of them shows."""

    tokens: int
    reserved: int = 0


@dataclass(frozen=True)
class Chart:
    """Rows of a chart, the columns left of its plot, and the columns of the plot."""

    rows: list[Strip]
    left: int
    width: int


@dataclass(frozen=True)
class Layout:
    """Rows for what: `over` above the fence, `under` below it, `memory`, and whether events have one."""

    over: int
    under: int
    memory: int
    events: bool

    @classmethod
    def of(cls, height: int, series: Series, scale: Scale) -> Layout:
        """Divide `height` rows; the strip of exceeded steps, the fence and the axis take one each."""
        memory = 0 if series.reserved is None else 3 if height >= 16 else 2 if height >= 12 else 1
        events = series.marks_events and height >= 9
        plot = max(2, height - 3 - memory - events)
        excess = max(0.0, scale.tokens / max(series.limit, 1) - 1)
        under = max(1, min(plot - 1, int(plot / (1 + excess))))
        return cls(plot - under, under, memory, events)


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
    """The chart of a series in `size` (columns, rows); `departs`: from this step on it is another history."""
    width, height = size
    left = _label_width(series, scale, width)
    columns = max(1, width - left)
    layout = Layout.of(height, series, scale)
    envelope = series.envelope(window, columns)
    pen = _Pen(look, left, columns)
    rows = _tokens_rows(pen, series, scale, layout, _Seen(window, envelope, departs))
    rows.append(_exceeded_row(pen, envelope, series.exceeded_in(window)))
    if layout.events:
        rows.append(_event_row(pen, envelope))
    rows.extend(_memory_rows(pen, envelope, layout.memory, scale))
    rows.append(_axis_row(pen, window, departs, breaks))
    return Chart(rows, left, columns)


def _label_width(series: Series, scale: Scale, width: int) -> int:
    labels = [tokens(series.limit), tokens(scale.tokens), f"{min(len(series.over), 99999)}"]
    if series.reserved is not None:
        labels.append(memory_size(scale.reserved))
    return min(max(map(len, labels)) + 1, max(1, width // 2))


@dataclass(frozen=True)
class _Seen:
    """The window, and what is in it."""

    window: Window
    envelope: Envelope
    departs: int | None = None

    def other_from(self, columns: int) -> int | None:
        """The first column of another history than the recording; None: there is none in sight."""
        if self.departs is None or self.departs >= self.window.end:
            return None
        return self.window.column(self.departs, columns) or 0


class _Pen:
    """Turns rows of characters and classes into strips, a label at their left."""

    def __init__(self, look: Look, left: int, columns: int) -> None:
        self.glyphs, self.palette, self.left, self.columns = look.glyphs, look.palette, left, columns
        p = look.palette
        self.base = look.base
        self.styles = [
            look.base + style
            for style in (
                p.blank, p.mean, p.peak, p.mixed, p.exceeded, p.limit, p.memory, p.axis, p.event, p.departs,
                p.other_mean, p.other_peak, p.other_mixed,
            )
        ]  # fmt: skip
        self.edge = self.base + p.axis

    def code(self, text: str) -> Codes:
        return np.array([ord(character) for character in text], np.uint32)

    def row(self, codes: Codes, classes: Classes, label: str = "", style: Style | None = None) -> Strip:
        text = codes.astype("<u4").tobytes().decode("utf-32-le")
        changes = np.flatnonzero(classes[1:] != classes[:-1]) + 1
        starts = [0, *changes.tolist()]
        label_style = self.edge if style is None else self.base + style
        segments = [
            Segment(label[: self.left - 1].rjust(self.left - 1), label_style),
            Segment(self.glyphs.label if label else self.glyphs.axis, self.edge),
        ]
        for start, end, kind in zip(starts, [*starts[1:], len(text)], classes[starts].tolist(), strict=True):
            segments.append(Segment(text[start:end], self.styles[kind]))
        return Strip(segments, self.left + self.columns)

    def blank(self) -> tuple[Codes, Classes]:
        return np.full(self.columns, 32, np.uint32), np.zeros(self.columns, np.uint8)


def _tokens_rows(pen: _Pen, series: Series, scale: Scale, layout: Layout, seen: _Seen) -> list[Strip]:
    """Rows above the fence, the fence, rows below it, top to bottom."""
    envelope, eighth = seen.envelope, layout.under * 8 / max(series.limit, 1)
    breach = envelope.exceeded > 0
    over = np.where(breach, np.maximum(np.ceil((envelope.peak - series.limit) * eighth), 1), 0)
    peak = np.minimum(np.ceil(envelope.peak * eighth), layout.under * 8)
    mean = np.minimum(np.round(envelope.mean * eighth), peak)
    void = _void(pen, series, seen)
    above = _fill(_over_cells(pen, over, layout.over), void)
    below = _fill(_under_cells(pen, mean, peak, layout.under), void)
    _as_other(pen, seen, above, below)
    fence = np.where(breach, ord(pen.glyphs.breach), ord(pen.glyphs.fence)).astype(np.uint32)
    classes = np.where(breach, EXCEEDED, LIMIT).astype(np.uint8)
    top = tokens(scale.tokens) if scale.tokens > series.limit else ""
    rows = [pen.row(above[0][at], above[1][at], "" if at else top) for at in range(layout.over)]
    rows.append(pen.row(fence, classes, tokens(series.limit), pen.palette.exceeded))
    last = layout.under - 1
    rows += [pen.row(below[0][at], below[1][at], "0" if at == last else "") for at in range(layout.under)]
    return rows


def _as_other(pen: _Pen, seen: _Seen, *parts: tuple[Codes, Classes]) -> None:
    """Another history in other colours, and a line of dots where it departs."""
    first = seen.other_from(pen.columns)
    if first is None or seen.departs is None:
        return
    for codes, classes in parts:
        classes[:, first:] = OTHER[classes[:, first:]]
        if seen.window.start <= seen.departs:
            empty = codes[:, first] == 32
            codes[empty, first], classes[empty, first] = ord(pen.glyphs.departure), DEPARTS


def _eighths(height: NDArray[np.float64], rows: int) -> NDArray[np.int64]:
    """How many eighths of each cell are filled, `rows` rows from the top; more than 8: it goes on above."""
    foot = np.arange(rows - 1, -1, -1, dtype=np.int64)[:, None] * 8
    return np.asarray(np.maximum(height.astype(np.int64)[None, :] - foot, 0))


def _over_cells(pen: _Pen, height: NDArray[np.float64], rows: int) -> tuple[Codes, Classes]:
    eighths = _eighths(height, rows)
    codes = pen.code(pen.glyphs.above)[np.minimum(eighths, 8)]
    codes[0][eighths[0] > 8] = ord(pen.glyphs.cut)
    return codes, np.where(eighths > 0, EXCEEDED, BLANK).astype(np.uint8)


def _under_cells(
    pen: _Pen, mean: NDArray[np.float64], peak: NDArray[np.float64], rows: int
) -> tuple[Codes, Classes]:
    """Bright up to the mean, dim up to the peak; where both end in one cell it shows the peak."""
    low, high = np.minimum(_eighths(mean, rows), 8), np.minimum(_eighths(peak, rows), 8)
    mixed = (high == 8) & (low > 0) & (low < 8) & pen.glyphs.mixes
    codes = pen.code(pen.glyphs.area)[np.where(mixed, low, high)]
    classes = np.where(high == 0, BLANK, np.where(mixed, MIXED, np.where(low * 2 >= high, MEAN, PEAK)))
    return codes, classes.astype(np.uint8)


def _void(pen: _Pen, series: Series, seen: _Seen) -> tuple[Codes, Classes]:
    """What fills the empty cells of a column: nothing, a hatch where it hangs or where steps were lost."""
    codes, classes = pen.blank()
    starts, ends = seen.window.edges(pen.columns)
    lost = ~seen.envelope.present & (ends > series.first) & (starts < series.end)
    codes[lost], classes[lost] = ord(pen.glyphs.lost), AXIS
    hang = series.history.outcome.hang
    if hang is not None:
        codes[starts >= hang.step], classes[starts >= hang.step] = ord(pen.glyphs.hang), LIMIT
    return codes, classes


def _fill(cells: tuple[Codes, Classes], void: tuple[Codes, Classes]) -> tuple[Codes, Classes]:
    empty = cells[1] == BLANK
    return np.where(empty, void[0], cells[0]).astype(np.uint32), np.where(empty, void[1], cells[1])


def _exceeded_row(pen: _Pen, envelope: Envelope, count: int) -> Strip:
    """A mark under each column that exceeds: strong where half its steps or more do."""
    codes, classes = pen.blank()
    marked = envelope.exceeded > 0
    codes[marked] = ord(pen.glyphs.exceeded)
    classes[marked] = np.where(envelope.exceeded * 2 >= envelope.steps, EXCEEDED, LIMIT)[marked]
    label = tokens(count) if count else ""
    return pen.row(codes, classes, label, pen.palette.exceeded)


def _event_row(pen: _Pen, envelope: Envelope) -> Strip:
    """`p` where requests were preempted, `s` where decodes stalled, `b` where both."""
    codes, classes = pen.blank()
    kind = (envelope.preempted > 0) * 1 + (envelope.stalled > 0) * 2
    codes = pen.code(" psb")[kind]
    classes[kind > 0] = EVENT
    return pen.row(codes, classes)


def _memory_rows(pen: _Pen, envelope: Envelope, rows: int, scale: Scale) -> list[Strip]:
    if envelope.reserved is None or not rows or not scale.reserved:
        return []
    eighths = np.minimum(_eighths(np.ceil(envelope.reserved / scale.reserved * rows * 8), rows), 8)
    codes = pen.code(pen.glyphs.memory)[eighths]
    classes = np.full(pen.columns, MEMORY, np.uint8)
    labels = [memory_size(scale.reserved), "mem", ""]
    return [pen.row(codes[at], classes, labels[at], pen.palette.memory) for at in range(rows)]


def _axis_row(pen: _Pen, window: Window, departs: int | None, breaks: Sequence[int] = ()) -> Strip:
    """Step numbers at round steps, and the mark where this becomes another history than the recording."""
    codes, classes = pen.blank()
    classes[:] = AXIS
    longest = len(f"{window.end:,}") + 3
    every = _round_step(window.span * longest / pen.columns)
    free = 0
    for step in range(-(-window.start // every) * every, window.end, every):
        column = window.column(step, pen.columns)
        text = f"{pen.glyphs.tick}{step}"
        if column is not None and free <= column <= pen.columns - len(text):
            codes[column : column + len(text)] = pen.code(text)
            free = column + len(text) + 1
    if departs is not None and departs < window.end:
        _mark_departure(pen, window, departs, codes, classes)
    for step in breaks:
        mark = window.column(step, pen.columns)
        if mark is not None:
            codes[mark], classes[mark] = ord(pen.glyphs.stop), EVENT
    return pen.row(codes, classes)


def _mark_departure(pen: _Pen, window: Window, departs: int, codes: Codes, classes: Classes) -> None:
    """The diamond where it departs, and dashes under all that follows: that is another history."""
    at = window.column(departs, pen.columns)
    first = 0 if at is None else at
    free = codes[first:] == 32
    codes[first:][free] = ord(pen.glyphs.other)
    classes[first:] = DEPARTS
    if at is not None:
        codes[at] = ord(pen.glyphs.departs)


def _round_step(least: float) -> int:
    """The smallest of 1, 2, 5, 10, 20, … that is not below `least`."""
    unit = 1
    while True:
        for factor in (1, 2, 5):
            if unit * factor >= least:
                return unit * factor
        unit *= 10
