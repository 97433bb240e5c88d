"""The requests that waited after each recorded step, as sums: `queued_requests` of ForwardPassMetrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fdtrace.recorder.trace.column_values import Ints
from fdtrace.trace_columns import trace_columns

if TYPE_CHECKING:
    from fdtrace.recorder.trace.trace import Trace

FIRST_WAITS = """
SELECT coalesce(r.arrived_step, b.begin) AS since, least(q.first, v.ended, b.past) AS until,
       coalesce(r.num_prompt_tokens, 0) AS tokens
FROM request r CROSS JOIN (SELECT min(step) AS begin, max(step) + 1 AS past FROM step WHERE engine_id = $1) b
LEFT JOIN (SELECT request, min(step) AS first, arg_min(kind, step) AS kind,
                  arg_min(num_computed_tokens, step) AS computed
           FROM step_request WHERE engine_id = $1 GROUP BY request) q ON q.request = r.request
LEFT JOIN (SELECT request, min(step) AS ended FROM event
           WHERE engine_id = $1 AND kind IN ('finished', 'aborted', 'preallocated') GROUP BY request) v
    ON v.request = r.request
WHERE r.engine_id = $1 AND (r.arrived_step IS NOT NULL
                            OR (q.kind = 'prefill' AND q.computed <= coalesce(r.num_cached_tokens, 0)))
"""
"""From the step at which a request came to the one in which it first ran: as view `waiting` counts `queued`."""
PREEMPTED_WAITS = """
WITH lost AS (
    SELECT DISTINCT request, step FROM event WHERE engine_id = $1 AND kind = 'preempted' AND request IS NOT NULL
), ran AS (
    SELECT request, step, num_computed_tokens
           + CASE WHEN kind = 'prefill' THEN num_tokens ELSE 1 + coalesce(num_accepted_tokens, 0) END AS tokens
    FROM step_request WHERE engine_id = $1 AND request IN (SELECT request FROM lost)
), before AS (
    SELECT l.request, l.step, r.tokens FROM lost l ASOF LEFT JOIN ran r ON r.request = l.request AND l.step > r.step
)
SELECT w.step AS since, least(r.step, v.ended, b.past) AS until, coalesce(w.tokens, 0) AS tokens
FROM before w ASOF LEFT JOIN ran r ON r.request = w.request AND w.step <= r.step
CROSS JOIN (SELECT max(step) + 1 AS past FROM step WHERE engine_id = $1) b
LEFT JOIN (SELECT request, min(step) AS ended FROM event
           WHERE engine_id = $1 AND kind IN ('finished', 'aborted') GROUP BY request) v ON v.request = w.request
"""
"""From the step whose call preempted a request to the one in which it ran again; its prompt and outputs so far."""


@dataclass(frozen=True)
class _Sums:
    """Of the requests that wait after each step: how many, the sum of their tokens, the sum of the squares."""

    count: Ints
    tokens: Ints
    squares: Ints

    def rows(self, first: int, end: int) -> Iterator[tuple[int, int, float]]:
        """Requests, tokens and the population variance of their tokens, for some steps."""
        parts = (values[first:end].tolist() for values in (self.count, self.tokens, self.squares))
        for count, tokens, squares in zip(*parts, strict=True):
            yield count, tokens, (count * squares - tokens * tokens) / (count * count) if count else 0.0


@dataclass(frozen=True)
class QueueSums:
    """What waited after the scheduling call of each step."""

    prefills: _Sums
    """Requests that had not run; tokens of their prompts."""
    decodes: _Sums
    """Preempted requests; their tokens so far."""

    @property
    def num_requests(self) -> Ints:
        """Requests that waited after each step."""
        return self.prefills.count + self.decodes.count

    def metrics(self, first: int, end: int) -> Iterator[dict[str, Any]]:
        """`QueuedRequestMetrics` of the steps from entry `first` to before entry `end`."""
        for prefill, decode in zip(
            self.prefills.rows(first, end), self.decodes.rows(first, end), strict=True
        ):
            yield {
                "num_prefill_requests": prefill[0],
                "sum_prefill_tokens": prefill[1],
                "var_prefill_length": prefill[2],
                "num_decode_requests": decode[0],
                "sum_decode_kv_tokens": decode[1],
                "var_decode_kv_tokens": decode[2],
            }


def queue_sums(trace: Trace, engine_id: int, steps: Ints) -> QueueSums:
    """What waited after each of these steps.

    Args:
        trace: open.
        engine_id: the engine.
        steps: all its steps' numbers.
    """
    return QueueSums(
        *(_sums(trace_columns(trace, query, engine_id), steps) for query in (FIRST_WAITS, PREEMPTED_WAITS))
    )


def _sums(waits: dict[str, Any], steps: Ints) -> _Sums:
    """Counts what each wait adds from its first step on, and takes it off from its last one on."""
    since, until = (np.searchsorted(steps, waits[name]) for name in ("since", "until"))
    waited = until > since
    tokens = waits["tokens"][waited]
    sums = []
    for amount in (np.ones(len(tokens), np.int64), tokens, tokens * tokens):
        change = np.zeros(len(steps) + 1, np.int64)
        np.add.at(change, since[waited], amount)
        np.add.at(change, until[waited], -amount)
        sums.append(np.cumsum(change)[:-1])
    return _Sums(*sums)
