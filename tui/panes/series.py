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
from fdtrace.recorder.trace.columns_on_demand import entry_of, stored_column
from fdtrace.replayer.history.history import History
from fdtrace.tui.panes.step_sums import RangeMaxima, RangeSums, RareSums

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
        self.tokens = self._counts("num_tokens")
        self.over = np.flatnonzero(self.tokens > self.limit)
        self._sums, self._tokens = RangeSums(self.tokens), RangeMaxima(self.tokens)
        self._preempted, self._stalled = (
            RareSums(self._counts("num_preempted")),
            RareSums(self._counts("num_stalled")),
        )
        lag = columns.get(LAG)
        self.lag: Ints | None = None if lag is None else np.asarray(lag, dtype=np.int64)

    def _counts(self, name: str) -> NDArray[np.signedinteger]:
        """A column of counts in a small type. Where a value is not known, it is 0."""
        columns = self.history.columns
        if name not in columns:
            return np.broadcast_to(np.int64(0), len(self.step))
        values = stored_column(columns, name)
        return np.maximum(values, 0) if values.min(initial=0) < 0 else values

    @cached_property
    def reserved(self) -> NDArray[np.signedinteger] | None:
        """Bytes reserved after each step, or needed (the history has one of both); None: not known."""
        for name in ("reserved_bytes", "peak_allocated_bytes"):
            if name in self.history.columns:
                values = stored_column(self.history.columns, name)
                return values if int(values.max(initial=0)) > 0 else None
        return None

    @cached_property
    def _most_reserved(self) -> RangeMaxima | None:
        return None if self.reserved is None else RangeMaxima(self.reserved)

    @cached_property
    def _running_requests(self) -> RangeMaxima:
        return RangeMaxima(self._counts("num_running"))

    @cached_property
    def _waiting_requests(self) -> RangeMaxima:
        return RangeMaxima(self._counts("num_waiting"))

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
        return self._tokens.highest

    @cached_property
    def peak_reserved(self) -> int:
        """Most bytes reserved (or needed: the history has one of both) at any step; 0 if memory is not known."""
        return 0 if self._most_reserved is None else self._most_reserved.highest

    @cached_property
    def peak_running(self) -> int:
        """Most requests running at any step; 0 if that is not known."""
        return self._running_requests.highest

    @cached_property
    def peak_waiting(self) -> int:
        """Most requests waiting at any step; 0 if that is not known."""
        return self._waiting_requests.highest

    @cached_property
    def peak_lag(self) -> int:
        """Most forwards that a call had not taken in; 0 if that is not known."""
        return 0 if self.lag is None else int(self.lag.max(initial=0))

    @cached_property
    def _lag_maxima(self) -> RangeMaxima:
        assert self.lag is not None
        return RangeMaxima(self.lag + 1)

    @cached_property
    def marks_events(self) -> bool:
        """Whether a request was preempted or stalled in any step."""
        return bool(self._preempted.total or self._stalled.total)

    def index(self, step: int) -> int | None:
        """The index of a step in the columns; None: this history has no such step."""
        at = int(np.searchsorted(self.step, step))
        return at if at < len(self.step) and self.step[at] == step else None

    def value(self, column: str, step: int) -> int | None:
        """A column's value at a step; None if step, column or value is unknown."""
        at = self.index(step)
        return None if at is None else self.value_at(column, at)

    def value_at(self, column: str, at: int) -> int | None:
        """A column's value at an index of `index`; None if the column or the value is unknown."""
        columns = self.history.columns
        if column not in columns:
            return None
        value = int(entry_of(columns, column, at))
        return None if value == MISSING else value

    @cached_property
    def exceeded_steps(self) -> Ints:
        """The numbers of the steps over the limit."""
        return self.step[self.over]

    def exceeded_after(self, step: int, count: int = 1) -> int | None:
        """The `count`-th exceeded step after `step`, or the last one; None if there is none."""
        over = self.exceeded_steps
        at = int(np.searchsorted(over, step, side="right"))
        return None if at >= len(over) else int(over[min(at + count, len(over)) - 1])

    def exceeded_before(self, step: int, count: int = 1) -> int | None:
        """The `count`-th exceeded step before `step`, or the first one; None if there is none."""
        over = self.exceeded_steps
        at = int(np.searchsorted(over, step, side="left"))
        return None if at <= 0 else int(over[max(at - count, 0)])

    def exceeded_in(self, window: Window) -> int:
        """Exceeded steps in a window."""
        low, high = np.searchsorted(self.exceeded_steps, (window.start, window.end))
        return int(high - low)

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
        return Envelope(
            steps=steps,
            peak=self._tokens.of(low, high),
            mean=self._sums.of(low, high) / np.maximum(steps, 1),
            exceeded=np.searchsorted(self.over, high) - np.searchsorted(self.over, low),
            preempted=self._preempted.of(low, high),
            stalled=self._stalled.of(low, high),
            reserved=None if self._most_reserved is None else self._most_reserved.of(low, high),
        )

    def queues(self, window: Window, width: int) -> tuple[Ints, Ints]:
        """The most requests running, and the most waiting, in each of `width` columns of the window."""
        starts, ends = window.edges(width)
        low, high = np.searchsorted(self.step, starts), np.searchsorted(self.step, ends)
        return self._running_requests.of(low, high), self._waiting_requests.of(low, high)

    def lags(self, window: Window, width: int) -> Ints | None:
        """The most unseen forwards plus 1, in each of `width` columns of the window; 0: not known there."""
        if self.lag is None:
            return None
        starts, ends = window.edges(width)
        low, high = np.searchsorted(self.step, starts), np.searchsorted(self.step, ends)
        return self._lag_maxima.of(low, high)


def absence_text(series: Series | None, step: int, *, live: bool = False) -> str:
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
