"""The scale that panes side by side share, and the rows of a pane. The same row means the same in each pane."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fdtrace.tui.panes.series import Series


@dataclass(frozen=True)
class Scale:
    """The largest values that any pane shows, and whether any pane has events. It is the same for all panes.

    `lag`: the number of forwards that a call had not taken in.
    """

    tokens: int
    reserved: int = 0
    running: int = 0
    waiting: int = 0
    events: bool = False
    lag: int = 0

    @classmethod
    def of(cls, shown: Iterable[Series]) -> Scale:
        """The scale of these histories over all their steps. It does not change with zoom and pan."""
        histories = list(shown)
        if not histories:
            return cls(1)
        return cls(
            max(max(series.peak, series.limit) for series in histories),
            max(series.peak_reserved for series in histories),
            max(series.peak_running for series in histories),
            max(series.peak_waiting for series in histories),
            any(series.marks_events for series in histories),
            max(series.peak_lag for series in histories),
        )


@dataclass(frozen=True)
class Layout:
    """The rows of a chart: `above` the fence, `below` it, of `memory`; and whether events, queues and lag have rows."""

    above: int
    below: int
    events: bool
    queues: bool
    memory: int
    lag: bool = False

    @classmethod
    def of(cls, height: int, limit: int, scale: Scale) -> Layout:
        """Divide `height` rows. The row of exceeded steps, the fence and the axis take one row each."""
        memory = 0 if not scale.reserved else 3 if height >= 16 else 2 if height >= 12 else 1
        events = scale.events and height >= 9
        queues = bool(scale.running or scale.waiting) and height >= 14
        lag = bool(scale.lag) and height >= 10
        plot = max(2, height - 3 - memory - events - 2 * queues - lag)
        excess = max(0.0, scale.tokens / max(limit, 1) - 1)
        below = max(1, min(plot - 1, int(plot / (1 + excess))))
        return cls(plot - below, below, events, queues, memory, lag)
