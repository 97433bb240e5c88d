"""Sums the metrics of a recording in progress from its trace. An earlier sum is continued, not computed again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fdtrace.metrics import names
from fdtrace.metrics.names import Metric
from fdtrace.recorder.trace.json_values import json_object
from fdtrace.recorder.trace.standstill import standstill
from fdtrace.recorder.trace.trace import Trace

SETTLED_NS = 60_000_000_000
"""Rows that are this much older than the newest one are summed once. The collector publishes every 1.5 s, so no older
row can still come."""

LAG_ROWS = 2048
"""The last rows of `call_request`, and the last steps, among which the lag of the last call is looked up."""

Sample = tuple[Metric, tuple[str, ...], float]
"""A metric, the values of its labels, and its value."""

STEP_SUMS = """
SELECT engine_id, count(*) AS steps, sum(num_prefill_tokens) AS prefill, sum(num_decode_tokens) AS decode,
       sum(greatest(token_budget - num_scheduled_tokens, 0)) AS unused, sum(num_preempted) AS preempted,
       sum(num_stalled) AS stalled
FROM step WHERE ts >= make_timestamp_ns($1) AND ts < make_timestamp_ns($2) GROUP BY engine_id
"""

EXCEEDED_SUMS = """
SELECT engine_id, limit_name, count(*) AS steps, sum(excess_tokens) AS tokens
FROM exceeded WHERE ts >= make_timestamp_ns($1) AND ts < make_timestamp_ns($2) GROUP BY ALL
"""

REFUSED_SUMS = """
SELECT engine_id, not_admitted AS reason, sum(num_calls) AS calls
FROM call WHERE not_admitted IS NOT NULL AND last_ts >= make_timestamp_ns($1) AND last_ts < make_timestamp_ns($2)
GROUP BY ALL
"""

DISCARDED_SUMS = """
SELECT engine_id, sum(discarded_tokens) AS tokens
FROM preemption WHERE ts >= make_timestamp_ns($1) AND ts < make_timestamp_ns($2) GROUP BY ALL
"""

LOST_SUMS = """
SELECT engine_id, sum(TRY_CAST(detail->>'$.frames' AS BIGINT)) AS frames
FROM event WHERE kind = 'lost' AND engine_id IS NOT NULL
  AND ts >= make_timestamp_ns($1) AND ts < make_timestamp_ns($2) GROUP BY ALL
"""

GROWTH_SUMS = """
SELECT engine_id, sum(greatest(reserved_bytes - before, 0)) AS growth, first(reserved_bytes ORDER BY step) AS first,
       last(reserved_bytes ORDER BY step) AS last, max(peak_reserved_bytes) AS peak
FROM (SELECT *, lag(reserved_bytes) OVER (PARTITION BY engine_id ORDER BY step) AS before
      FROM step WHERE reserved_bytes IS NOT NULL AND ts >= make_timestamp_ns($1) AND ts < make_timestamp_ns($2))
GROUP BY engine_id
"""

LAST_STEPS = """
SELECT engine_id, epoch_ns(max(ts)) / 1e9 AS ts,
       arg_max(greatest(token_budget - num_scheduled_tokens, 0), step) AS budget_left
FROM step WHERE ts >= make_timestamp_ns($1) GROUP BY engine_id
"""

LAST_LAGS = """
WITH recent AS (
    FROM call_request WHERE did IS NULL
    QUALIFY row_number() OVER (PARTITION BY engine_id ORDER BY call DESC) <= $1
), ran AS (
    FROM step_request q SEMI JOIN (SELECT engine_id, max(step) - $1 AS first FROM step GROUP BY engine_id) s
      ON q.engine_id = s.engine_id AND q.step >= s.first
    QUALIFY num_computed_tokens > coalesce(max(num_computed_tokens) OVER (
        PARTITION BY engine_id, request ORDER BY step ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), -1)
), known AS (
    SELECT r.engine_id, r.call, max(max(q.step)) OVER (PARTITION BY r.engine_id ORDER BY r.call) AS seen
    FROM recent r ASOF JOIN ran q
      ON r.engine_id = q.engine_id AND r.request = q.request AND r.num_total_tokens > q.num_computed_tokens
    GROUP BY r.engine_id, r.call
)
SELECT k.engine_id, arg_max(c.first_step - k.seen - 1, k.call) AS lag
FROM known k JOIN call c ON c.engine_id = k.engine_id AND c.call = k.call AND c.first_step IS NOT NULL
GROUP BY k.engine_id
"""
"""The view `call_lag` of the last call, computed from the last rows alone."""


@dataclass
class AllocatorGrowth:
    """The allocator of one engine over a range of steps, in bytes. `first` and `last`: reserved after those steps."""

    bytes: int = 0
    first: int | None = None
    last: int | None = None
    peak: int | None = None

    def then(self, later: AllocatorGrowth) -> AllocatorGrowth:
        """This range, and the one that follows it."""
        between = 0 if self.last is None or later.first is None else max(later.first - self.last, 0)
        peaks = [peak for peak in (self.peak, later.peak) if peak is not None]
        return AllocatorGrowth(
            self.bytes + between + later.bytes,
            later.first if self.first is None else self.first,
            self.last if later.last is None else later.last,
            max(peaks, default=None),
        )


@dataclass
class Sums:
    """Counters over the rows before the time `until` (ns, UTC), and each engine's allocator."""

    until: int = 0
    counters: Counter[tuple[Metric, tuple[str, ...]]] = field(default_factory=Counter)
    growth: dict[str, AllocatorGrowth] = field(default_factory=dict)

    def then(self, later: Sums) -> Sums:
        """These, and the sums over the rows from `until` on."""
        growth = dict(self.growth)
        for engine, range_growth in later.growth.items():
            growth[engine] = growth.get(engine, AllocatorGrowth()).then(range_growth)
        return Sums(later.until, self.counters + later.counters, growth)

    def as_json(self) -> dict[str, Any]:
        """The counters and the growth."""
        return {
            "counters": [[metric.name, *labels, value] for (metric, labels), value in self.counters.items()],
            "growth": {engine: asdict(growth) for engine, growth in self.growth.items()},
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Sums:
        """The sums that `as_json` gave."""
        known = {metric.name: metric for metric in names.METRICS}
        counters = Counter(
            {(known[name], tuple(labels)): int(value) for name, *labels, value in fields["counters"]}
        )
        growth = {engine: AllocatorGrowth(**values) for engine, values in fields["growth"].items()}
        return cls(0, counters, growth)


class RecordingSums:
    """The metrics of one recording in progress. It keeps the sums over settled rows between two readings.

    The ring of a flight recorder drops rows whether anybody reads or not. Its collector has summed what is gone
    (`fdtrace.flights.dropped_sums`), and only what is there is summed here.
    """

    def __init__(self) -> None:
        self.settled = Sums()

    def samples(self, trace: Trace) -> Iterator[Sample]:
        """Every metric that follows from the trace as it is now.

        Args:
            trace: the trace, just opened.

        Raises:
            TraceError: it cannot be read.
        """
        engines = trace.engines()
        newest = _newest(trace)
        dropped = _dropped(trace)
        cut = max(newest - SETTLED_NS, self.settled.until)
        if dropped is not None:
            self.settled = dropped
        elif cut > self.settled.until:
            self.settled = self.settled.then(sums_of(trace, self.settled.until, cut))
        now = self.settled.then(sums_of(trace, self.settled.until, newest + 1))
        for engine in engines:
            yield names.ENGINE_INFO, _labels_of(engine), 1.0
            yield from _always(now, str(engine["engine_id"]))
            still = standstill(trace, engine)
            yield names.STANDSTILL, (str(engine["engine_id"]),), still.seconds if still else 0.0
        for (metric, labels), value in now.counters.items():
            if metric not in ALWAYS:
                yield metric, labels, float(value)
        yield from _gauges(trace, now, self.settled.until)


ALWAYS = (names.STEPS, names.PREEMPTED, names.DISCARDED, names.STALLED, names.UNUSED, names.LOST)
"""Counters that are exported from the start, as 0: Prometheus computes rates only between two samples."""


def _always(now: Sums, engine: str) -> Iterator[Sample]:
    for metric in ALWAYS:
        yield metric, (engine,), float(now.counters[metric, (engine,)])


def _gauges(trace: Trace, now: Sums, settled: int) -> Iterator[Sample]:
    for engine, growth in now.growth.items():
        yield names.GROWTH, (engine,), float(growth.bytes)
        if growth.last is not None:
            yield names.RESERVED, (engine,), float(growth.last)
        if growth.peak is not None:
            yield names.PEAK_RESERVED, (engine,), float(growth.peak)
    for row in trace.rows(LAST_STEPS, [settled]):
        yield names.LAST_STEP, (str(row["engine_id"]),), row["ts"]
        if row["budget_left"] is not None:
            yield names.BUDGET_LEFT, (str(row["engine_id"]),), float(row["budget_left"])
    for row in trace.rows(LAST_LAGS, [LAG_ROWS]):
        if row["lag"] is not None:
            yield names.LAG, (str(row["engine_id"]),), float(row["lag"])


def _dropped(trace: Trace) -> Sums | None:
    """What the ring of a flight recorder has dropped; None if this is none, or if its collector does not count."""
    if not trace.rows("SELECT 1 FROM duckdb_tables() WHERE table_name = '_collector'"):
        return None
    query = "SELECT json_extract_string(state, '$.flight.dropped') AS dropped FROM _collector"
    dropped = json_object(next(iter(trace.rows(query)), {"dropped": None})["dropped"])
    return Sums.from_json(dropped) if dropped else None


def _newest(trace: Trace) -> int:
    row = trace.rows(
        "SELECT greatest((SELECT max(epoch_ns(ts)) FROM step), (SELECT max(epoch_ns(last_ts)) FROM call), "
        "(SELECT max(epoch_ns(ts)) FROM event)) AS newest"
    )[0]
    return row["newest"] or 0


def sums_of(trace: Trace, first: int, end: int) -> Sums:
    """The sums over the rows of the times from `first` to before `end`, ns."""
    span = [first, end]
    counters: Counter[tuple[Metric, tuple[str, ...]]] = Counter()

    def add(metric: Metric, row: Mapping[str, Any], value: int | None, *labels: str) -> None:
        if value is not None:
            counters[metric, (str(row["engine_id"]), *labels)] += int(value)

    for row in trace.rows(STEP_SUMS, span):
        add(names.STEPS, row, row["steps"])
        add(names.TOKENS, row, row["prefill"], "prefill")
        add(names.TOKENS, row, row["decode"], "decode")
        add(names.UNUSED, row, row["unused"])
        add(names.PREEMPTED, row, row["preempted"])
        add(names.STALLED, row, row["stalled"])
    for row in trace.rows(EXCEEDED_SUMS, span):
        add(names.EXCEEDED, row, row["steps"], row["limit_name"])
        add(names.EXCESS, row, row["tokens"], row["limit_name"])
    for row in trace.rows(REFUSED_SUMS, span):
        add(names.REFUSED, row, row["calls"], row["reason"])
    for row in trace.rows(DISCARDED_SUMS, span):
        add(names.DISCARDED, row, row["tokens"])
    for row in trace.rows(LOST_SUMS, span):
        add(names.LOST, row, row["frames"])
    growth = {
        str(row["engine_id"]): AllocatorGrowth(row["growth"] or 0, row["first"], row["last"], row["peak"])
        for row in trace.rows(GROWTH_SUMS, span)
    }
    return Sums(end, counters, growth)


def _labels_of(engine: Mapping[str, Any]) -> tuple[str, ...]:
    values = (engine[name] for name in ("engine_id", "name", "version", "role", "dp_rank", "pid"))
    return tuple("" if value is None else str(value) for value in values)
