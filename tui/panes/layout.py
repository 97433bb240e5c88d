"""What panes side by side share, and how a pane's rows are divided, so that the same row means the same in each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fdtrace.tui.panes.series import Series


@dataclass(frozen=True)
class Scale:
    """The most of each that any pane shows, and whether any has events: alike in all. `lag`: forwards unseen."""

    tokens: int
    reserved: int = 0
    running: int = 0
    waiting: int = 0
    events: bool = False
    lag: int = 0

    @classmethod
    def of(cls, shown: Iterable[Series]) -> Scale:
        """The scale of these histories over all their steps: it stays while one zooms and pans."""
        histories = list(shown)
        if not histories:
            return cls(1)
        return cls(
            max(max(one.peak, one.limit) for one in histories),
            max(one.peak_reserved for one in histories),
            max(one.peak_running for one in histories),
            max(one.peak_waiting for one in histories),
            any(one.marks_events for one in histories),
            max(one.peak_lag for one in histories),
        )


@dataclass(frozen=True)
class Layout:
    """Rows for what: `over` above the fence, `under` below it, `memory`; whether events, queues and lag have theirs."""

    over: int
    under: int
    events: bool
    queues: bool
    memory: int
    lag: bool = False

    @classmethod
    def of(cls, height: int, limit: int, scale: Scale) -> Layout:
        """Divide `height` rows; the strip of exceeded steps, the fence and the axis take one each."""
        memory = 0 if not scale.reserved else 3 if height >= 16 else 2 if height >= 12 else 1
        events = scale.events and height >= 9
        queues = bool(scale.running or scale.waiting) and height >= 14
        lag = bool(scale.lag) and height >= 10
        plot = max(2, height - 3 - memory - events - 2 * queues - lag)
        excess = max(0.0, scale.tokens / max(limit, 1) - 1)
        under = max(1, min(plot - 1, int(plot / (1 + excess))))
        return cls(plot - under, under, events, queues, memory, lag)
