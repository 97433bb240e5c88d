"""The steps of a recording as ForwardPassMetrics: what Dynamo's and SGLang's schedulers publish of each forward.

Names, units and their meaning are those of Dynamo's `dynamo/common/forward_pass_metrics.py` (version 1). SGLang's
structures are the same. `extend_lengths` and `past_kv_lengths` are AISimulate's additions to `scheduled_requests`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fdtrace.exporting.queued_requests import queue_sums
from fdtrace.recorder.trace.column_values import MISSING, Floats, Ints
from fdtrace.trace_columns import trace_columns

if TYPE_CHECKING:
    from fdtrace.recorder.trace.trace import Trace

FPM_VERSION = 1
CHUNK_STEPS = 1 << 14
"""Steps whose requests are in memory at a time."""

STEPS = """
SELECT s.step, coalesce(epoch_ns(s.ts), -1) AS ts, coalesce(s.schedule_us, 0)::BIGINT AS schedule_us,
       coalesce(s.forward_us, 0)::BIGINT AS forward_us, coalesce(s.num_waiting, -1)::BIGINT AS num_waiting,
       coalesce(s.num_running, 0)::BIGINT + coalesce(s.num_waiting, 0) - coalesce(f.count, 0) AS num_left
FROM step s LEFT JOIN (SELECT step, count(*) AS count FROM event WHERE engine_id = $1 AND kind = 'finished'
                       GROUP BY step) f USING (step)
WHERE s.engine_id = $1 ORDER BY s.step
"""
SCHEDULED = """
SELECT q.step, count(*) FILTER (prefill), coalesce(sum(q.num_tokens) FILTER (prefill), 0)::BIGINT,
       coalesce(var_pop(r.num_prompt_tokens) FILTER (prefill), 0),
       coalesce(sum(q.num_computed_tokens) FILTER (prefill), 0)::BIGINT, count(*) FILTER (NOT prefill),
       coalesce(sum(q.num_computed_tokens) FILTER (NOT prefill), 0)::BIGINT,
       coalesce(var_pop(q.num_computed_tokens) FILTER (NOT prefill), 0) {lists}
FROM (SELECT *, kind = 'prefill' AS prefill FROM step_request WHERE engine_id = $1 AND step BETWEEN $2 AND $3) q
LEFT JOIN request r ON r.engine_id = q.engine_id AND r.request = q.request
GROUP BY q.step
"""
LISTS = """,
       list(coalesce(q.num_tokens, 0) ORDER BY prefill DESC, q.request),
       list(coalesce(q.num_computed_tokens, 0) ORDER BY prefill DESC, q.request)
"""
SCHEDULED_NAMES = (
    *("num_prefill_requests", "sum_prefill_tokens", "var_prefill_length", "sum_prefill_kv_tokens"),
    *("num_decode_requests", "sum_decode_kv_tokens", "var_decode_kv_tokens"),
)
REQUEST_NAMES = ("extend_lengths", "past_kv_lengths")
NOTHING: dict[str, Any] = {name: 0.0 if name.startswith("var") else 0 for name in SCHEDULED_NAMES}


@dataclass(frozen=True)
class StepMetrics:
    """One forward."""

    end_ns: int
    """When it ended, since 1970; without a clock, since the first step."""
    fields: dict[str, Any]
    """A `ForwardPassMetrics`, by its own names."""


class MetricsOfSteps:
    """The ForwardPassMetrics of all steps of one engine, in their order."""

    def __init__(self, trace: Trace, engine: dict[str, Any], step_ns: int, *, each_request: bool) -> None:
        """Read what is known of the steps without their requests.

        Args:
            trace: open, until all records were taken.
            engine: the row of the engine.
            step_ns: how long a step counts if the trace has no times.
            each_request: with the tokens of each request, beside the sums.
        """
        self.trace, self.engine, self.each_request = trace, engine, each_request
        self.steps = trace_columns(trace, STEPS, engine["engine_id"])
        self.has_clock = bool(len(self.steps["ts"])) and bool((self.steps["ts"] != MISSING).all())
        self.wall_s, self._end_ns = self._times(step_ns)
        self.queue = queue_sums(trace, engine["engine_id"], self.steps["step"])

    def _times(self, step_ns: int) -> tuple[Floats, Ints]:
        """Seconds of each step, and when it ended.

        As Dynamo counts `wall_time`: while requests are left, up to the next scheduling call; else the call and the
        forward. 0: the trace does not say.
        """
        count = len(self.steps["step"])
        if not self.has_clock:
            return np.full(count, step_ns / 1e9), np.arange(1, count + 1, dtype=np.int64) * step_ns
        call_ns = self.steps["schedule_us"] * 1000
        begin = self.steps["ts"] - call_ns
        own = np.where(self.steps["forward_us"] > 0, call_ns + self.steps["forward_us"] * 1000, 0)
        to_next = np.append(np.diff(begin), 0)
        is_next = np.append(np.diff(self.steps["step"]) == 1, False)
        follows = is_next & (self.steps["num_left"] > 0) & (to_next > 0)
        wall = np.where(follows, to_next, own)
        return wall / 1e9, begin + wall

    @property
    def num_untimed(self) -> int:
        """Steps of which the trace does not say how long they took."""
        return int((self.wall_s == 0).sum())

    @property
    def num_other_queues(self) -> int:
        """Steps after which the engine counted other waiting requests than this can name."""
        counted = self.steps["num_waiting"]
        return int(((counted != MISSING) & (counted != self.queue.num_requests)).sum())

    def records(self) -> Iterator[StepMetrics]:
        """One record a step."""
        numbers, ends, walls = (values.tolist() for values in (self.steps["step"], self._end_ns, self.wall_s))
        worker = f"{self.engine['host'] or self.engine['name']}:{self.engine['pid'] or 0}"
        rank = self.engine["dp_rank"] or 0
        for first in range(0, len(numbers), CHUNK_STEPS):
            end = min(len(numbers), first + CHUNK_STEPS)
            scheduled = self._scheduled(numbers[first], numbers[end - 1])
            for at, queued in zip(range(first, end), self.queue.metrics(first, end), strict=True):
                fields = {
                    "version": FPM_VERSION,
                    "worker_id": worker,
                    "dp_rank": rank,
                    "counter_id": numbers[at],
                    "wall_time": walls[at],
                    "scheduled_requests": scheduled.get(numbers[at], NOTHING),
                    "queued_requests": queued,
                }
                yield StepMetrics(ends[at], fields)

    def _scheduled(self, first: int, last: int) -> dict[int, dict[str, Any]]:
        names = (*SCHEDULED_NAMES, *(REQUEST_NAMES if self.each_request else ()))
        query = SCHEDULED.format(lists=LISTS if self.each_request else "")
        rows = self.trace.db.execute(query, [self.engine["engine_id"], first, last]).fetchall()
        return {row[0]: dict(zip(names, row[1:], strict=True)) for row in rows}
