"""Rows of a chart: characters and their classes, turned into styled strips."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from fdtrace.tui.theme import Look

Codes = NDArray[np.uint32]
Classes = NDArray[np.uint8]

BLANK, MEAN, PEAK, MIXED, EXCEEDED, LIMIT, MEMORY, AXIS, EVENT, DEPARTS = range(10)

OTHER = np.arange(13, dtype=np.uint8)
OTHER[[MEAN, PEAK, MIXED]] = [10, 11, 12]
"""The class of a cell that shows another history than the recording."""


class Pen:
    """Turns rows of characters and classes into strips with a label on the left."""

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


def eighths_of(height: NDArray[np.float64], rows: int) -> NDArray[np.int64]:
    """How many eighths of each cell are filled, for `rows` rows from the top; more than 8: it goes on above."""
    foot = np.arange(rows - 1, -1, -1, dtype=np.int64)[:, None] * 8
    return np.asarray(np.maximum(height.astype(np.int64)[None, :] - foot, 0))
