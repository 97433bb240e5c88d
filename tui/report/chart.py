"""The report's chart of tokens a step against the limit, drawn with plotext."""

from __future__ import annotations

from threading import Lock
from typing import Any

import numpy as np
import plotext
from numpy.typing import NDArray

from fdtrace.tui.panes.series import Series, Window
from fdtrace.tui.theme import tokens

HEIGHT = 15

_figure_lock = Lock()
"""plotext has one figure for the whole process, and no lock of its own."""

_FRAME = str.maketrans("─│┌┐└┘├┤┬┴┼", "-|+++++++++")


def tokens_chart(
    series: Series, width: int, *, peak: int = 0, ascii: bool = False, height: int = HEIGHT
) -> str:
    """The chart of a history in `width` columns, with ANSI colours.

    An area shows the highest step of each half column up to the limit, which is a line. Above the line a bar shows the
    tokens over the limit, with a mark on top. The mark is at least one row above the line, so that a single token over
    the limit is visible too.

    Args:
        series: the history.
        width: columns of the chart.
        peak: tokens that the scale reaches at least, so that several charts share one scale.
        ascii: whether to draw with plain ASCII.
        height: rows of the chart.
    """
    if not len(series):
        return ""
    limit = series.limit
    peak = max(peak, series.peak)
    top = max(peak, limit * 1.02) * 1.04
    ticks = [0, limit, *([peak] if peak > limit * 1.1 else [])]
    labels = [tokens(tick) for tick in ticks]
    columns = max(8, width - max(map(len, labels)) - 2)
    window = Window.over(series.first, series.end)
    halves, whole = series.envelope(window, columns * 2), series.envelope(window, columns)
    where = np.arange(columns)
    row = top / max(1, height - 4)
    area, line, bar, mark = ("#", "-", "!", "^") if ascii else ("hd", "─", "█", "▲")
    with _figure_lock:
        figure = _figure(width, height)
        shown, over = halves.peak > 0, whole.exceeded > 0
        x = (np.arange(columns * 2) + 0.5) / 2 - 0.5
        _stems(figure, x[shown], (0, np.minimum(halves.peak, limit)[shown]), _marker(area, "blue+"))
        _stems(figure, where[over], (limit, whole.peak[over]), _marker(bar, "red+"))
        _line(figure, where, limit, line)
        _points(figure, where[over], np.maximum(whole.peak[over], limit + row), mark)
        figure.ruler("x", 0).lim(-0.5, columns - 0.5)
        figure.ruler("y", 0).lim(0, top)
        figure.ruler("y", 0).ticks(ticks, labels)
        figure.ruler("x", 0).ticks(*_step_ticks(window, columns))
        text: str = figure.build().string()
    return text.rstrip("\n").translate(_FRAME) if ascii else text.rstrip("\n")


def _figure(width: int, height: int) -> Any:
    """plotext's figure, empty, without colours of its own."""
    plotext.terminal.limit(False, False)
    figure = plotext.figure
    figure.clear()
    figure.plot_size(width, height)
    figure.theme("colorless")
    figure.canvas("default")
    return figure


def _marker(glyph: str, colour: str) -> Any:
    return plotext.marker(glyph, pixel=plotext.pixel(colour))


def _stems(figure: Any, x: NDArray[Any], ends: tuple[float, NDArray[Any]], marker: Any) -> None:
    """A vertical line from `ends[0]` to each of `ends[1]`. plotext's own `fillx` takes 1.8 s for 2,000 points."""
    if not len(x):
        return
    base, tops = ends
    y = np.column_stack((np.full(len(tops), base), tops)).ravel()
    signal = figure.signal(np.repeat(x, 2).tolist(), y.tolist(), marker=marker)
    for end in range(1, len(y), 2):
        signal.line(end)
    figure.draw(signal)


def _line(figure: Any, x: NDArray[Any], y: float, glyph: str) -> None:
    ends = [float(x[0]), float(x[-1])]
    figure.draw(figure.signal(ends, [y, y], marker=_marker(glyph, "red+")).lines(True))


def _points(figure: Any, x: NDArray[Any], y: NDArray[Any], glyph: str) -> None:
    if len(x):
        figure.draw(figure.signal(x.tolist(), y.tolist(), marker=_marker(glyph, "red+")))


def _step_ticks(window: Window, columns: int) -> tuple[list[int], list[str]]:
    count = max(2, min(7, columns // 14, window.span))
    steps = np.linspace(window.start, window.end - 1, count).astype(int).tolist()
    return [window.column(step, columns) or 0 for step in steps], [str(step) for step in steps]
