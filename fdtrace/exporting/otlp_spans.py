"""What `fdtrace export --to otlp` sends: a span for each request that finished, and spans of steps.

Names that exist are used. Of a request: those of OpenTelemetry's GenAI conventions, and those of vLLM's `llm_request`
(`vllm/tracing/utils.py`), which are older. Of a step there is no convention: span `scheduler_steps` and event
`step.BATCH_SUMMARY` are those of inference-sim's vLLM (its STEP_TRACING.md). What neither has is named `fdtrace.…`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from fdtrace.recorder.trace.column_values import MISSING, Ints

if TYPE_CHECKING:
    from fdtrace.recorder.trace.trace import Trace
    from fdtrace.timeline.timeline_run import TimelineRun, TimelineSteps

SpanAttributes: TypeAlias = Mapping[str, "int | float | str | Sequence[str]"]

STEPS_A_SPAN = 100
"""Events of a span; receivers commonly keep 128."""
ROWS_AT_ONCE = 10_000

REQUESTS = """
SELECT coalesce(r.request_id, 'request ' || r.request), epoch_ns(r.arrived_at), epoch_ns(r.finished_at),
       r.finish_reason, r.num_prompt_tokens, r.num_output_tokens, r.num_cached_tokens, r.max_tokens,
       q.first_step, q.token_step, q.last_step, coalesce(p.count, 0)
FROM request r
LEFT JOIN (SELECT s.request, min(s.step) AS first_step, max(s.step) AS last_step,
                  min(s.step) FILTER (s.kind = 'prefill'
                                      AND s.num_computed_tokens + s.num_tokens >= n.num_prompt_tokens) AS token_step
           FROM step_request s JOIN request n USING (engine_id, request) WHERE engine_id = $1 GROUP BY s.request) q
    ON q.request = r.request
LEFT JOIN (SELECT request, count(*) AS count FROM event WHERE engine_id = $1 AND kind = 'preempted' GROUP BY request) p
    ON p.request = r.request
WHERE r.engine_id = $1 AND r.finish_reason IS NOT NULL ORDER BY r.request
"""
FINISHED = (
    "SELECT step, count(*) AS count FROM event WHERE engine_id = $1 AND kind = 'finished' GROUP BY step"
)
OF_STEP = {
    "queue.running_depth": "num_running",
    "queue.waiting_depth": "num_waiting",
    "batch.scheduled_tokens": "num_scheduled_tokens",
    "batch.prefill_tokens": "num_prefill_tokens",
    "batch.decode_tokens": "num_decode_tokens",
    "batch.num_preempted": "num_preempted",
    "kv.blocks_free_gpu": "num_free_blocks",
    "fdtrace.num_tokens": "num_tokens",
    "fdtrace.token_budget": "token_budget",
    "fdtrace.reserved_bytes": "reserved_bytes",
}
"""Attribute of a step -> column."""


@dataclass(frozen=True)
class OtlpEvent:
    """Something that happened within a span."""

    ns: int
    name: str
    attributes: SpanAttributes


@dataclass(frozen=True)
class OtlpSpan:
    """A span. Times are nanoseconds since 1970."""

    name: str
    begin_ns: int
    end_ns: int
    attributes: SpanAttributes
    events: tuple[OtlpEvent, ...] = ()
    is_server: bool = False
    """It is the server's side of a client's call."""
    error: str = ""
    """Why it failed; empty: it did not."""


def request_spans(trace: Trace, engine_id: int, run: TimelineRun) -> Iterator[OtlpSpan]:
    """A span for each request that finished.

    Args:
        trace: open, until all spans were taken.
        engine_id: the engine.
        run: its recording, with a clock.
    """
    cursor = trace.db.cursor()
    cursor.execute(REQUESTS, [engine_id])
    while rows := cursor.fetchmany(ROWS_AT_ONCE):
        for row in rows:
            yield _request_span(run, *row)


def _request_span(
    run: TimelineRun,
    request_id: str,
    arrived: int | None,
    finished: int | None,
    reason: str,
    prompt: int | None,
    output: int | None,
    cached: int | None,
    max_tokens: int | None,
    first_step: int | None,
    token_step: int | None,
    last_step: int | None,
    num_preemptions: int,
) -> OtlpSpan:
    scheduled, first_token, last_token = (
        _moment(run.numbers, ends, step)
        for ends, step in ((run.begin_ns, first_step), (run.end_ns, token_step), (run.end_ns, last_step))
    )
    begin = _first_known(arrived, scheduled, finished, int(run.begin_ns[0]))
    end = max(begin, _first_known(finished, last_token, begin))
    attributes = {
        "gen_ai.request.id": request_id,
        "gen_ai.request.max_tokens": max_tokens,
        "gen_ai.response.finish_reasons": (reason,),
        "gen_ai.usage.input_tokens": prompt,
        "gen_ai.usage.output_tokens": output,
        "gen_ai.usage.cache_read.input_tokens": cached,
        "gen_ai.usage.prompt_tokens": prompt,
        "gen_ai.usage.completion_tokens": output,
        "gen_ai.latency.time_in_queue": _seconds(arrived, scheduled),
        "gen_ai.latency.time_to_first_token": _seconds(arrived, first_token),
        "gen_ai.latency.e2e": _seconds(arrived, finished),
        "gen_ai.latency.time_in_model_prefill": _seconds(scheduled, first_token),
        "gen_ai.latency.time_in_model_decode": _seconds(first_token, last_token),
        "gen_ai.latency.time_in_model_inference": _seconds(scheduled, last_token),
        "fdtrace.num_preemptions": num_preemptions,
    }
    known = {name: value for name, value in attributes.items() if value is not None}
    error = "the request failed" if reason == "error" else ""
    return OtlpSpan("llm_request", begin, end, known, is_server=True, error=error)


def _moment(numbers: Ints, times: Ints, step: int | None) -> int | None:
    at = None if step is None else int(np.searchsorted(numbers, step))
    return None if at is None or at >= len(numbers) else int(times[at])


def _first_known(*moments: int | None) -> int:
    return next(moment for moment in moments if moment is not None)


def _seconds(begin: int | None, end: int | None) -> float | None:
    return None if begin is None or end is None else max(0, end - begin) / 1e9


def step_spans(trace: Trace, engine: Mapping[str, Any], run: TimelineRun) -> Iterator[OtlpSpan]:
    """Spans of `STEPS_A_SPAN` steps each, with an event for each step.

    Args:
        trace: open, until all spans were taken.
        engine: the row of the engine.
        run: its recording, with a clock.
    """
    finished = dict(trace.db.execute(FINISHED, [engine["engine_id"]]).fetchall())
    for some in run.steps():
        events = list(_step_events(run, some, finished, engine["num_blocks"]))
        for first in range(0, len(events), STEPS_A_SPAN):
            part = tuple(events[first : first + STEPS_A_SPAN])
            begin, end = some.first + first, some.first + first + len(part) - 1
            steps = {
                "fdtrace.first_step": int(run.numbers[begin]),
                "fdtrace.last_step": int(run.numbers[end]),
            }
            yield OtlpSpan("scheduler_steps", int(run.begin_ns[begin]), int(run.end_ns[end]), steps, part)


def _step_events(
    run: TimelineRun, some: TimelineSteps, finished: Mapping[int, int], num_blocks: int | None
) -> Iterator[OtlpEvent]:
    count = len(some.columns["num_tokens"])
    part = slice(some.first, some.first + count)
    begins, ends, numbers = (values[part].tolist() for values in (run.begin_ns, run.end_ns, run.numbers))
    prefills, decodes = (
        np.bincount(some.rows.step[chosen] - some.first, minlength=count).tolist()
        for chosen in (some.rows.prefill, ~some.rows.prefill)
    )
    columns = [
        (name, some.columns[column].tolist()) for name, column in OF_STEP.items() if column in some.columns
    ]
    for at in range(count):
        known = {name: values[at] for name, values in columns if values[at] != MISSING}
        attributes: dict[str, int | float | str] = {
            "step.id": numbers[at],
            "step.ts_start_ns": begins[at],
            "step.ts_end_ns": ends[at],
            "step.duration_us": (ends[at] - begins[at]) // 1000,
            "batch.num_prefill_reqs": prefills[at],
            "batch.num_decode_reqs": decodes[at],
            "batch.num_finished": finished.get(numbers[at], 0),
            **known,
        }
        if num_blocks:
            attributes["kv.blocks_total_gpu"] = num_blocks
            if "kv.blocks_free_gpu" in known:
                attributes["kv.usage_gpu_ratio"] = 1 - known["kv.blocks_free_gpu"] / num_blocks
        if known["fdtrace.num_tokens"] > run.limit:
            attributes["fdtrace.excess_tokens"] = known["fdtrace.num_tokens"] - run.limit
        yield OtlpEvent(ends[at], "step.BATCH_SUMMARY", attributes)
