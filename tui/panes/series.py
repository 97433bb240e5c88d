"""The columns of a history that charts draw, stored so that any window of them is summed up in microseconds.

Everything here is numpy: no terminal, no files. Positions are step numbers, not indices: panes of different
histories share one axis, and a recording may have gaps where steps were lost.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fdtrace.recorder.printable import printable
from fdtrace.recorder.trace.column_values import MISSING, Ints
from fdtrace.replayer.history.history import History

LAG = "num_unseen_steps"
"""A column of a history: for each step, how many earlier forwards its call had not taken in."""


MIN_SPAN = 8
"""Fewest steps that a window shows."""


@dataclass(frozen=True)
class Window:
    """The steps `start` to `end` (exclusive) that charts show, out of `low` to `high` (exclusive)."""

    low: int
    high: int
    start: int
    end: int

    @classmethod
    def over(cls, low: int, high: int) -> Window:
        """All steps from `low` to `high` (exclusive), at least one."""
        high = max(high, low + 1)
        return cls(low, high, low, high)

    @property
    def span(self) -> int:
        """Steps shown."""
        return self.end - self.start

    def at(self, start: int, span: int) -> Window:
        """A window of `span` steps from `start`, moved and cut to the existing steps."""
        full = self.high - self.low
        span = max(min(span, full), min(MIN_SPAN, full))
        start = max(self.low, min(start, self.high - span))
        return replace(self, start=start, end=start + span)

    def zoom(self, factor: float, step: int) -> Window:
        """A window of `factor` times the span. `step` keeps its place on the screen if there is room."""
        span = max(1, round(self.span * factor))
        if factor > 1 and span == self.span:
            span += 1
        share = (min(max(step, self.start), self.end) - self.start) / self.span
        return self.at(step - int(share * span), span)

    def pan(self, share: float) -> Window:
        """The window moved by a share of the span; below 0: to the left."""
        steps = round(self.span * share) or (1 if share > 0 else -1)
        return self.at(self.start + steps, self.span)

    def around(self, step: int) -> Window:
        """The same span with `step` in the middle."""
        return self.at(step - self.span // 2, self.span)

    def fit(self) -> Window:
        """The window with all steps."""
        return replace(self, start=self.low, end=self.high)

    def widened(self, low: int, high: int) -> Window:
        """The window with bounds that include `low` to `high`. If it showed everything, it still shows everything."""
        was_fit = (self.start, self.end) == (self.low, self.high)
        wider = replace(self, low=min(self.low, low), high=max(self.high, high))
        return wider.fit() if was_fit else wider

    def column(self, step: int, width: int) -> int | None:
        """The column (of `width` columns) in which a step is drawn, the middle one of several; None: it is outside."""
        if not self.start <= step < self.end or width <= 0:
            return None
        offset = step - self.start
        first = -(-offset * width // self.span)
        last = -(-(offset + 1) * width // self.span) - 1
        return min(width - 1, (first + last) // 2 if last >= first else last)

    def step_at(self, column: int, width: int) -> int:
        """The first step drawn in a column of `width`, cut to the window."""
        column = max(0, min(column, width - 1))
        return min(self.end - 1, self.start + column * self.span // max(1, width))

    def edges(self, width: int) -> tuple[Ints, Ints]:
        """First step and end (exclusive) of each of `width` columns."""
        marks = self.start + np.arange(width + 1, dtype=np.int64) * self.span // max(1, width)
        return marks[:-1], np.maximum(marks[1:], marks[:-1] + 1)


@dataclass(frozen=True)
class Envelope:
    """A window summed up by column: all that a chart draws.

    `peak` is the most tokens of a step, `mean` their mean, `exceeded` the steps
    over the limit, `steps` the steps in the column (0: none, all else is 0), `reserved` the most bytes (None:
    not known).
    """

    steps: Ints
    peak: Ints
    mean: NDArray[np.float64]
    exceeded: Ints
    preempted: Ints
    stalled: Ints
    reserved: Ints | None

    @property
    def present(self) -> NDArray[np.bool_]:
        """Columns that hold a step."""
        return self.steps > 0


class Series:
    """One history, ready to be drawn and searched."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.name, self.how, self.limit = history.name, history.how, history.limit
        columns = history.columns
        self.step: Ints = np.ascontiguousarray(columns["step"], dtype=np.int64)
        self.tokens: Ints = np.maximum(np.asarray(columns["num_tokens"], dtype=np.int64), 0)
        self.over = np.flatnonzero(self.tokens > self.limit)
        reserved = columns.get("reserved_bytes", columns.get("peak_allocated_bytes"))
        has_memory = reserved is not None and len(reserved) > 0 and int(reserved.max()) > 0
        self.reserved: Ints | None = np.ascontiguousarray(reserved, dtype=np.int64) if has_memory else None
        self._sum = _running_sums(self.tokens)
        self._over = _running_sums(self.tokens > self.limit)
        self._preempted = _running_sums(np.maximum(self._column("num_preempted"), 0))
        self._stalled = _running_sums(np.maximum(self._column("num_stalled"), 0))
        self._running_requests = np.maximum(self._column("num_running"), 0)
        lag = columns.get(LAG)
        self.lag: Ints | None = None if lag is None else np.asarray(lag, dtype=np.int64)
        self._waiting_requests = np.maximum(self._column("num_waiting"), 0)

    def _column(self, name: str) -> Ints:
        column = self.history.columns.get(name)
        return np.zeros(len(self.step), np.int64) if column is None else np.asarray(column, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.step)

    @property
    def first(self) -> int:
        """The first step's number; 0 if there is none."""
        return int(self.step[0]) if len(self.step) else 0

    @property
    def end(self) -> int:
        """One more than the last step's number; 0 if there is none."""
        return int(self.step[-1]) + 1 if len(self.step) else 0

    @cached_property
    def peak(self) -> int:
        """Most tokens of any step."""
        return int(self.tokens.max()) if len(self.tokens) else 0

    @cached_property
    def peak_reserved(self) -> int:
        """Most bytes reserved (or needed: the history has one of both) at any step; 0 if memory is not known."""
        return int(self.reserved.max()) if self.reserved is not None else 0

    @cached_property
    def peak_running(self) -> int:
        """Most requests running at any step; 0 if that is not known."""
        return int(self._running_requests.max(initial=0))

    @cached_property
    def peak_waiting(self) -> int:
        """Most requests waiting at any step; 0 if that is not known."""
        return int(self._waiting_requests.max(initial=0))

    @cached_property
    def peak_lag(self) -> int:
        """Most forwards that a call had not taken in; 0 if that is not known."""
        return 0 if self.lag is None else int(self.lag.max(initial=0))

    @cached_property
    def marks_events(self) -> bool:
        """Whether a request was preempted or stalled in any step."""
        return bool(self._preempted[-1] or self._stalled[-1])

    def index(self, step: int) -> int | None:
        """The index of a step in the columns; None: this history has no such step."""
        at = int(np.searchsorted(self.step, step))
        return at if at < len(self.step) and self.step[at] == step else None

    def value(self, column: str, step: int) -> int | None:
        """A column's value at a step; None if step, column or value is unknown."""
        at, values = self.index(step), self.history.columns.get(column)
        if at is None or values is None:
            return None
        value = int(values[at])
        return None if value == MISSING else value

    def exceeded_after(self, step: int, count: int = 1) -> int | None:
        """The `count`-th exceeded step after `step`, or the last one; None if there is none."""
        over = self.step[self.over]
        at = int(np.searchsorted(over, step, side="right"))
        return None if at >= len(over) else int(over[min(at + count, len(over)) - 1])

    def exceeded_before(self, step: int, count: int = 1) -> int | None:
        """The `count`-th exceeded step before `step`, or the first one; None if there is none."""
        over = self.step[self.over]
        at = int(np.searchsorted(over, step, side="left"))
        return None if at <= 0 else int(over[max(at - count, 0)])

    def exceeded_in(self, window: Window) -> int:
        """Exceeded steps in a window."""
        low, high = np.searchsorted(self.step, (window.start, window.end))
        return int(self._over[high] - self._over[low])

    def departs_from(self, other: Series) -> int | None:
        """The first step whose tokens differ from those of `other`; None: no common step differs.

        A history "as recorded" never departs: each step keeps its recorded state.
        """
        if self.how != "rescheduled":
            return None
        common_length = min(len(self), len(other))
        if np.array_equal(self.step[:common_length], other.step[:common_length]):
            differ = np.flatnonzero(self.tokens[:common_length] != other.tokens[:common_length])
            return int(self.step[differ[0]]) if len(differ) else None
        common, own_indices, other_indices = np.intersect1d(
            self.step, other.step, assume_unique=True, return_indices=True
        )
        differ = np.flatnonzero(self.tokens[own_indices] != other.tokens[other_indices])
        return int(common[differ[0]]) if len(differ) else None

    def envelope(self, window: Window, width: int) -> Envelope:
        """The window in `width` columns. Peaks are kept, not averaged."""
        starts, ends = window.edges(width)
        low = np.searchsorted(self.step, starts)
        high = np.searchsorted(self.step, ends)
        steps = high - low
        total = self._sum[high] - self._sum[low]
        return Envelope(
            steps=steps,
            peak=_highest(self.tokens, low, high),
            mean=total / np.maximum(steps, 1),
            exceeded=self._over[high] - self._over[low],
            preempted=self._preempted[high] - self._preempted[low],
            stalled=self._stalled[high] - self._stalled[low],
            reserved=None if self.reserved is None else _highest(self.reserved, low, high),
        )

    def queues(self, window: Window, width: int) -> tuple[Ints, Ints]:
        """The most requests running, and the most waiting, in each of `width` columns of the window."""
        starts, ends = window.edges(width)
        low, high = np.searchsorted(self.step, starts), np.searchsorted(self.step, ends)
        return _highest(self._running_requests, low, high), _highest(self._waiting_requests, low, high)

    def lags(self, window: Window, width: int) -> Ints | None:
        """The most unseen forwards plus 1, in each of `width` columns of the window; 0: not known there."""
        if self.lag is None:
            return None
        starts, ends = window.edges(width)
        low, high = np.searchsorted(self.step, starts), np.searchsorted(self.step, ends)
        return _highest(self.lag + 1, low, high)


def _running_sums(values: NDArray[np.generic]) -> Ints:
    """Sums of the first 0, 1, … values."""
    out = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=out[1:])
    return out


def _highest(values: Ints, low: Ints, high: Ints) -> Ints:
    """The highest of `values[low[i]:high[i]]`; 0 if that is empty.

    The ranges are either one after the other, or each at most one entry long.
    """
    out = np.zeros(len(low), np.int64)
    present = high > low
    if not present.any():
        return out
    starts, ends = low[present], high[present]
    if (ends - starts).max() == 1:
        out[present] = values[starts]
        return out
    part = values[starts[0] : ends[-1]]
    out[present] = np.maximum.reduceat(part, starts - starts[0])
    return out


def absence(series: Series | None, step: int, *, live: bool = False) -> str:
    """Why there is nothing to show at a step; `live`: this is a replay of a recording that has grown since."""
    if series is None or not len(series):
        return "no steps"
    hang = series.history.outcome.hang
    if hang is not None and step >= hang.step:
        return printable(f"hangs since step {hang.step}: {hang.cause}")
    if step >= series.end:
        return (
            f"replays what was recorded up to step {series.end - 1}"
            if live
            else f"finished at step {series.end - 1}"
        )
    return "not started yet" if step < series.first else "lost: this step is not in the recording"
