"""A replay as a run of a timeline, on the time axis of its recording."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from fdtrace.recorder.errors import UsageError
from fdtrace.recorder.trace.column_values import MISSING, Ints
from fdtrace.replayer.history.history import History
from fdtrace.replayer.history.lives import RequestLives
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.timeline.draw_run import STEP_COLUMNS
from fdtrace.timeline.timeline_run import (
    TimelineArgs,
    TimelineInstant,
    TimelineRequests,
    TimelineRun,
    TimelineSteps,
    chunks,
    steps_on_axis,
)


def replayed_run(history: History, recorded: TimelineRun) -> TimelineRun:
    """The run of a replay.

    A replay by time has its own times. Another has none: its n-th step is drawn where the n-th recorded step is, and
    what comes after the recording follows at the recording's mean pace.

    Raises:
        UsageError: the replay does not say what each request ran.
    """
    lives = None if history.lives is None else history.lives()
    if lives is None:
        raise UsageError(
            f"{history.name} cannot be drawn",
            why="it keeps the recorded steps, so requests run in no other steps",
            hint="export it without --as-recorded",
        )
    count = len(history.columns["num_tokens"])
    begin, end, axis = _axis(lives, recorded, count)
    columns = {
        name: np.asarray(values, np.int64)
        for name, values in history.columns.items()
        if name in STEP_COLUMNS and (np.asarray(values) != MISSING).any()
    }
    for name in ("num_tokens", "num_prefill_tokens", "num_decode_tokens"):
        columns.setdefault(name, np.zeros(count, np.int64))
    numbers = np.asarray(history.columns["step"], np.int64)
    return TimelineRun(
        f"{history.name}, replayed ({axis})",
        history.limit,
        numbers,
        begin,
        end,
        _requests(lives, begin, count),
        partial(_steps, columns, lives.rows, count),
        partial(_exceeded, history, numbers, begin),
        partial(_events, history, numbers, begin),
        columns=tuple(columns),
    )


def _axis(lives: RequestLives, recorded: TimelineRun, count: int) -> tuple[Ints, Ints, str]:
    if lives.starts_us is not None:
        begin = recorded.begin_ns[0] + (lives.starts_us[:count] * 1000).astype(np.int64)
        return *steps_on_axis(begin, np.zeros(count, np.int64)), "by time"
    there = min(count, len(recorded.begin_ns))
    span = int(recorded.end_ns[-1] - recorded.begin_ns[0])
    pace = max(1, span // len(recorded.begin_ns))
    after = recorded.end_ns[-1] + np.arange(count - there) * pace
    begin = np.concatenate([recorded.begin_ns[:there], after]).astype(np.int64)
    durations = np.concatenate([(recorded.end_ns - recorded.begin_ns)[:there], np.full(count - there, pace)])
    return *steps_on_axis(begin, durations), "each step where the recorded step of its number is"


def _requests(lives: RequestLives, begin: Ints, count: int) -> TimelineRequests:
    total = len(lives.request_ids)
    first, last = np.full(total, count, np.int64), np.full(total, MISSING, np.int64)
    np.minimum.at(first, lives.rows.request, lives.rows.step)
    np.maximum.at(last, lives.rows.request, lives.rows.step)
    arrived = np.where(lives.arrived < count, begin[np.minimum(lives.arrived, count - 1)], MISSING)
    if lives.arrived_us is not None:
        known = ~np.isnan(lives.arrived_us)
        by_time = begin[0] + (np.where(known, lives.arrived_us, 0) * 1000).astype(np.int64)
        arrived = np.where(known, by_time, arrived)
    return TimelineRequests(
        lives.request_ids,
        arrived,
        np.where(first == count, MISSING, first),
        last,
        lambda request: {"request": request},
    )


def _steps(columns: dict[str, Ints], rows: BatchRowColumns, count: int) -> Iterator[TimelineSteps]:
    for first, end in chunks(count):
        at, to = np.searchsorted(rows.step, [first, end])
        part = (rows.step, rows.request, rows.prefill, rows.num_tokens, rows.num_computed_tokens)
        some = BatchRowColumns(*(values[at:to] for values in (*part, rows.num_accepted_tokens)))  # type: ignore[arg-type]
        yield TimelineSteps(first, {name: values[first:end] for name, values in columns.items()}, some)


def _exceeded(history: History, numbers: Ints, begin: Ints) -> Iterator[TimelineInstant]:
    names = ("num_tokens", "num_prefill_tokens", "num_decode_tokens", "token_budget")
    for entry in history.exceeded.tolist():
        figures = {name: int(history.columns[name][entry]) for name in names if name in history.columns}
        tokens = figures["num_tokens"]
        excess = tokens - history.limit
        arithmetic = (
            f"{tokens} - {history.limit} = {excess}: {figures.get('num_prefill_tokens')} in prefills + "
            f"{figures.get('num_decode_tokens')} in decodes ran"
        )
        known = {name: value for name, value in figures.items() if value != MISSING}
        args: TimelineArgs = {
            "arithmetic": arithmetic,
            "step": int(numbers[entry]),
            **known,
            "excess_tokens": excess,
        }
        yield TimelineInstant(int(begin[entry]), f"exceeded by {excess}", args)


def _events(history: History, numbers: Ints, begin: Ints) -> Iterator[TimelineInstant]:
    """Preemptions and stalls, which a replay counts by step; and how it ended, if not well."""
    preempted, stalled = (
        np.asarray(history.columns.get(name, np.zeros(len(numbers))))
        for name in ("num_preempted", "num_stalled")
    )
    for entry in np.flatnonzero((preempted > 0) | (stalled > 0)).tolist():
        for name, counts in (("preempted", preempted), ("stalled", stalled)):
            if counts[entry] > 0:
                args = {"step": int(numbers[entry]), "requests": int(counts[entry])}
                yield TimelineInstant(int(begin[entry]), name, args)
    if history.outcome.why_not_done and len(begin):
        yield TimelineInstant(int(begin[-1]), "not done", {"why": history.outcome.why_not_done})
