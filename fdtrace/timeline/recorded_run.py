"""A recording as a run of a timeline. Its rows are read while it is drawn, so memory does not grow with its steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from fdtrace.recorder.errors import TraceError
from fdtrace.recorder.trace.column_values import MISSING, Ints
from fdtrace.replayer.recorded.batch_rows import BatchRowColumns
from fdtrace.timeline.draw_run import STEP_COLUMNS
from fdtrace.timeline.timeline_run import (
    TimelineArgs,
    TimelineInstant,
    TimelineRequests,
    TimelineRun,
    TimelineSlice,
    TimelineSteps,
    chunks,
    steps_on_axis,
)
from fdtrace.trace_columns import trace_columns

if TYPE_CHECKING:
    from fdtrace.recorder.trace.trace import Trace

NOT_DRAWN = (
    "arrived",
    "queued",
    "finished",
    "left",
    "freed",
    "extended",
    "output_cached",
    "recycled",
    "requeued",
)
"""Kinds of events that slices show, or that come with nearly each step."""
ROWS_AT_ONCE = 10_000
MOST_ARGS = 16

STEP_TIMES = """
SELECT step, coalesce(epoch_ns(ts), -1) AS ts, coalesce(forward_us, 0)::BIGINT * 1000 AS duration
FROM step WHERE engine_id = $1 ORDER BY step
"""
REQUESTS = """
SELECT r.request, coalesce(r.request_id, '') AS request_id, coalesce(epoch_ns(r.arrived_at), -1) AS arrived_at,
       coalesce(r.arrived_step, -1) AS arrived_step, coalesce(q.first_step, -1) AS first_step,
       coalesce(q.last_step, -1) AS last_step
FROM request r LEFT JOIN (SELECT request, min(step) AS first_step, max(step) AS last_step FROM step_request
                          WHERE engine_id = $1 GROUP BY request) q USING (request)
WHERE r.engine_id = $1 ORDER BY r.request
"""
REQUEST_ARGS = ("num_prompt_tokens", "num_cached_tokens", "num_output_tokens", "max_tokens", "finish_reason")
ROWS = """
SELECT step, request, kind = 'prefill' AS prefill, coalesce(num_tokens, 0) AS num_tokens,
       coalesce(num_computed_tokens, 0) AS num_computed_tokens, coalesce(num_accepted_tokens, 0) AS num_accepted_tokens
FROM step_request WHERE engine_id = $1 AND step BETWEEN $2 AND $3
"""
EXCEEDED = """
SELECT step, limit_name, limit_tokens, num_tokens, excess_tokens, num_prefill_tokens, num_decode_tokens,
       num_scheduled_tokens, token_budget, reserved_growth_bytes
FROM exceeded WHERE engine_id = $1 ORDER BY step
"""
EVENTS = """
SELECT v.step, coalesce(epoch_ns(v.ts), -1), v.kind, r.request_id, v.reason, v.detail
FROM event v LEFT JOIN request r USING (engine_id, request)
WHERE (v.engine_id = $1 OR v.engine_id IS NULL) AND NOT list_contains($2, v.kind) ORDER BY v.step, v.ts
"""
CALLS = """
SELECT epoch_ns(ts), coalesce(schedule_us, 0)::BIGINT * 1000, idle, call, num_calls, token_budget,
       num_scheduled_tokens, num_chunks, num_extended, num_preempted, not_admitted, first_step,
       epoch_ns(last_ts)
FROM call WHERE engine_id = $1 AND ts IS NOT NULL ORDER BY call
"""


def recorded_run(trace: Trace, engine_id: int | None, step_ns: int) -> tuple[TimelineRun, bool]:
    """The run of one engine of a trace, and whether it has a clock.

    Args:
        trace: open, until the run was drawn.
        engine_id: which engine; None: the first.
        step_ns: how long a step is drawn if the trace has no times.

    Raises:
        TraceError: the trace holds no step, or impossible values.
        UsageError: there is no such engine.
    """
    from fdtrace.recorder.trace.trace import reading

    engine = trace.checked_engine(engine_id)
    with reading(trace.path):
        return _Reader(trace, engine, step_ns).run()


@dataclass
class _Reader:
    trace: Trace
    engine: dict[str, Any]
    step_ns: int

    def run(self) -> tuple[TimelineRun, bool]:
        number = self.engine["engine_id"]
        times = trace_columns(self.trace, STEP_TIMES, number)
        self.numbers = times["step"]
        if not len(self.numbers):
            raise TraceError(
                f"{self.trace.path} holds no step to draw", hint=f"fdtrace info {self.trace.path}"
            )
        self.has_clock = bool((times["ts"] != MISSING).all())
        if self.has_clock:
            self.begin, self.end = steps_on_axis(times["ts"], times["duration"])
        else:
            self.begin = np.arange(len(self.numbers)) * self.step_ns
            self.end = self.begin + self.step_ns
        requests, columns = self._requests(), self._known_columns()
        steps = partial(self._steps, columns)
        name = f"engine {number}: {self.engine['name']}, recorded"
        name += "" if self.has_clock else " (no clock: by steps)"
        limit = int(self.engine["max_num_batched_tokens"])
        run = TimelineRun(
            *(name, limit, self.numbers, self.begin, self.end, requests, steps, self._exceeded, self._events),
            calls=self._calls,
            columns=columns,
        )
        return run, self.has_clock

    def _rows(self, query: str, *parameters: Any) -> Iterator[tuple[Any, ...]]:
        """Rows as they come, by a cursor of their own: other queries run in between."""
        cursor = self.trace.db.cursor()
        cursor.execute(query, list(parameters))
        while rows := cursor.fetchmany(ROWS_AT_ONCE):
            yield from rows

    def _entries(self, steps: Ints) -> Ints:
        entries = np.searchsorted(self.numbers, steps).astype(np.int64)
        return np.where(steps == MISSING, MISSING, np.minimum(entries, len(self.numbers) - 1))

    def _requests(self) -> TimelineRequests:
        table = trace_columns(self.trace, REQUESTS, self.engine["engine_id"])
        self.request_numbers = table["request"]
        arrived = table["arrived_at"]
        if not self.has_clock:
            entries = self._entries(table["arrived_step"])
            arrived = np.where(entries == MISSING, MISSING, self.begin[np.maximum(entries, 0)])
        return TimelineRequests(
            np.ma.getdata(table["request_id"]).tolist(),
            arrived,
            self._entries(table["first_step"]),
            self._entries(table["last_step"]),
            self._request_args,
        )

    def _request_args(self, request: int) -> TimelineArgs:
        number = int(self.request_numbers[request])
        names = ", ".join(REQUEST_ARGS)
        query = f"SELECT {names} FROM request WHERE engine_id = $1 AND request = $2"
        if not hasattr(self, "_args"):
            self._args: dict[int, TimelineArgs] = {}
        if number not in self._args:
            self._read_args(query.replace("request = $2", "request BETWEEN $2 AND $3"), number)
        return self._args[number]

    def _read_args(self, query: str, number: int) -> None:
        """The figures of the requests about this one."""
        first, last = number - ROWS_AT_ONCE, number + ROWS_AT_ONCE
        rows = self.trace.db.execute(
            query.replace("SELECT", "SELECT request,"), [self.engine["engine_id"], first, last]
        ).fetchall()
        self._args = {
            row[0]: {"request": row[0], **_known(dict(zip(REQUEST_ARGS, row[1:], strict=True)))}
            for row in rows
        }

    def _known_columns(self) -> tuple[str, ...]:
        counts = ", ".join(f"count({name})" for name in STEP_COLUMNS)
        query = f"SELECT {counts} FROM step WHERE engine_id = $1"
        row = self.trace.db.execute(query, [self.engine["engine_id"]]).fetchall()[0]
        return tuple(name for name, count in zip(STEP_COLUMNS, row, strict=True) if count)

    def _steps(self, columns: tuple[str, ...]) -> Iterator[TimelineSteps]:
        names = {*columns, "num_tokens", "num_prefill_tokens", "num_decode_tokens"}
        selected = ", ".join(f"coalesce({name}, -1)::BIGINT AS {name}" for name in sorted(names))
        query = f"SELECT {selected} FROM step WHERE engine_id = $1 AND step BETWEEN $2 AND $3 ORDER BY step"
        for first, end in chunks(len(self.numbers)):
            part = (self.engine["engine_id"], int(self.numbers[first]), int(self.numbers[end - 1]))
            yield TimelineSteps(first, trace_columns(self.trace, query, *part), self._batch_rows(part))

    def _batch_rows(self, part: tuple[int, int, int]) -> BatchRowColumns:
        table = trace_columns(self.trace, ROWS, *part)
        step, request = table["step"], table["request"]
        entries = np.searchsorted(self.numbers, step)
        known = (self.numbers[np.minimum(entries, len(self.numbers) - 1)] == step) & np.isin(
            request, self.request_numbers
        )
        figures = (
            table[name][known] for name in ("num_tokens", "num_computed_tokens", "num_accepted_tokens")
        )
        requests = np.searchsorted(self.request_numbers, request[known]).astype(np.int64)
        return BatchRowColumns(entries[known], requests, table["prefill"][known].astype(bool), *figures)

    def _moment(self, step: int | None) -> int:
        if step is None:
            return int(self.begin[0])
        at = int(np.searchsorted(self.numbers, step))
        return int(self.begin[at]) if at < len(self.begin) else int(self.end[-1])

    def _exceeded(self) -> Iterator[TimelineInstant]:
        for step, limit_name, limit, tokens, excess, prefill, decode, counted, budget, grown in self._rows(
            EXCEEDED, self.engine["engine_id"]
        ):
            arithmetic = f"{tokens} - {limit} = {excess}: {prefill} in prefills + {decode} in decodes ran"
            if counted is not None:
                arithmetic += f", the call counted {counted}"
            figures = {"step": step, "num_tokens": tokens, str(limit_name): limit, "excess_tokens": excess,
                       "num_prefill_tokens": prefill, "num_decode_tokens": decode, "num_scheduled_tokens": counted,
                       "token_budget": budget, "reserved_growth_bytes": grown}  # fmt: skip
            args = {"arithmetic": arithmetic, **_known(figures)}
            yield TimelineInstant(self._moment(step), f"exceeded by {excess}", args)

    def _events(self) -> Iterator[TimelineInstant]:
        for step, ts, kind, request_id, reason, detail in self._rows(
            EVENTS, self.engine["engine_id"], list(NOT_DRAWN)
        ):
            ns = ts if ts != MISSING and self.has_clock else self._moment(step)
            args = _known({"step": step, "request_id": request_id, "reason": reason})
            yield TimelineInstant(ns, kind or "event", {**args, **_of_detail(detail)})

    def _calls(self) -> Iterator[TimelineSlice]:
        if not self.has_clock:
            return
        before = 0
        for (
            ts,
            taken,
            idle,
            call,
            count,
            budget,
            counted,
            chunks_,
            extended,
            preempted,
            why,
            step,
            last,
        ) in self._rows(CALLS, self.engine["engine_id"]):
            begin = max(before, ts)
            before = max(begin, ts + taken, (last or ts) + taken)
            figures = {"call": call, "token_budget": budget, "num_scheduled_tokens": counted, "num_chunks": chunks_,
                       "num_extended": extended, "num_preempted": preempted, "not_admitted": why,
                       "first_step": step}  # fmt: skip
            name = "schedule" if not idle else "idle call" if count == 1 else f"{count} idle calls"
            yield TimelineSlice(begin, before, name, _known(figures))


def _known(values: dict[str, Any]) -> dict[str, int | float | str]:
    return {name: value for name, value in values.items() if value is not None}


def _of_detail(detail: str | None) -> dict[str, int | float | str]:
    """An event's own figures, one level deep; what is deeper stays JSON."""
    try:
        parsed = json.loads(detail or "{}")
    except (ValueError, RecursionError):
        return {"detail": str(detail)}
    if not isinstance(parsed, dict):
        return {"detail": str(detail)}
    items = list(parsed.items())[:MOST_ARGS]
    return {
        f"detail.{name}": value
        if isinstance(value, (int, float, str)) and _fits(value)
        else json.dumps(value)
        for name, value in items
    }


def _fits(value: int | float | str) -> bool:
    return not isinstance(value, int) or -(2**63) <= value < 2**63
