"""The rows below the tokens of a chart: exceeded steps, events, memory, the axis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from textual.strip import Strip

from fdtrace.recorder.trace.column_values import Ints
from fdtrace.tui.panes.cells import (
    AXIS,
    DEPARTS,
    EVENT,
    EXCEEDED,
    LIMIT,
    MEAN,
    MEMORY,
    PEAK,
    Classes,
    Codes,
    Pen,
    eighths_of,
)
from fdtrace.tui.panes.layout import Scale
from fdtrace.tui.panes.series import Envelope, Window
from fdtrace.tui.theme import memory_size, tokens


def exceeded_row(pen: Pen, envelope: Envelope, count: int) -> Strip:
    """A mark below each column with exceeded steps; a strong mark if at least half of its steps exceed."""
    codes, classes = pen.blank()
    marked = envelope.exceeded > 0
    codes[marked] = ord(pen.glyphs.exceeded)
    classes[marked] = np.where(envelope.exceeded * 2 >= envelope.steps, EXCEEDED, LIMIT)[marked]
    label = tokens(count) if count else ""
    return pen.row(codes, classes, label, pen.palette.exceeded)


def event_row(pen: Pen, envelope: Envelope) -> Strip:
    """`p`: requests were preempted; `s`: decodes stalled; `b`: both."""
    codes, classes = pen.blank()
    kind = (envelope.preempted > 0) * 1 + (envelope.stalled > 0) * 2
    codes = pen.code(" psb")[kind]
    classes[kind > 0] = EVENT
    return pen.row(codes, classes)


def queue_rows(pen: Pen, queues: tuple[Ints, Ints], scale: Scale) -> list[Strip]:
    """The most requests that ran and that waited in each column, scaled by the most that any pane shows."""
    rows = []
    for counts, highest, label, kind in (
        (queues[0], scale.running, "run", MEAN),
        (queues[1], scale.waiting, "wait", PEAK),
    ):
        eighths = np.minimum(np.ceil(counts * (8 / max(highest, 1))), 8).astype(np.int64)
        rows.append(pen.row(pen.code(pen.glyphs.area)[eighths], np.full(pen.columns, kind, np.uint8), label))
    return rows


MANY = 10
"""From so many unseen forwards on, a column shows a sign, not the number."""


IN_LOCKSTEP = "none: each call knows all outputs"
"""In place of the lag of a replay in lockstep."""


def lag_row(pen: Pen, lags: Ints | None, *, in_lockstep: bool = False) -> Strip:
    """How many forwards a step's call was behind: the most in each column, as a digit; `+`: more than nine."""
    codes, classes = pen.blank()
    if lags is None and in_lockstep:
        text = IN_LOCKSTEP[: pen.columns]
        codes[: len(text)], classes[: len(text)] = list(map(ord, text)), AXIS
    if lags is not None:
        is_known = lags > 0
        codes[is_known] = pen.code("0123456789+")[np.minimum(lags[is_known] - 1, MANY)]
        classes[is_known] = np.where(lags[is_known] - 1 > 1, EVENT, PEAK)
    return pen.row(codes, classes, "lag")


def memory_rows(pen: Pen, envelope: Envelope, rows: int, scale: Scale) -> list[Strip]:
    """The most bytes reserved in each column, in `rows` rows; empty if this history does not have them."""
    reserved = np.zeros(pen.columns, np.int64) if envelope.reserved is None else envelope.reserved
    eighths = np.minimum(eighths_of(np.ceil(reserved / scale.reserved * rows * 8), rows), 8)
    codes = pen.code(pen.glyphs.memory)[eighths]
    classes = np.full(pen.columns, MEMORY, np.uint8)
    labels = [memory_size(scale.reserved), "mem", ""]
    return [pen.row(codes[index], classes, labels[index], pen.palette.memory) for index in range(rows)]


def axis_row(pen: Pen, window: Window, departs: int | None, breaks: Sequence[int] = ()) -> Strip:
    """Step numbers at round steps, and a mark where the history departs from the recording."""
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


def _mark_departure(pen: Pen, window: Window, departs: int, codes: Codes, classes: Classes) -> None:
    """A diamond where the history departs from the recording, and dashes below everything after that."""
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
