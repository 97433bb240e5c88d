"""The metrics of a recording: names, meanings, units and labels. `docs/metrics.md` and the dashboard use these names.

A server exports what its clients see: latencies, queue lengths, cache usage. These are about what it does not export:
tokens beyond the limit, what is left of the budget, why requests wait, what preemptions throw away.
"""

from __future__ import annotations

from dataclasses import dataclass

ENGINE = "engine_id"
"""The label of every metric that an engine has: the engine's number in the trace."""


@dataclass(frozen=True)
class Metric:
    """One metric.

    Args:
        name: its name in Prometheus. Counters end with `_total`.
        help: its meaning and unit.
        labels: names of its labels, in order.
        counter: whether it only grows. Else it is a gauge: it holds the latest value.
    """

    name: str
    help: str
    labels: tuple[str, ...] = (ENGINE,)
    counter: bool = True


STEPS = Metric("fdtrace_steps_total", "Steps recorded: forwards that ran at least one token")
TOKENS = Metric(
    "fdtrace_tokens_total",
    "Tokens that forwards ran; kind: prefill or decode (with drafts)",
    (ENGINE, "kind"),
)
EXCEEDED = Metric(
    "fdtrace_exceeded_steps_total", "Steps that ran more tokens than a limit allows", (ENGINE, "limit")
)
EXCESS = Metric(
    "fdtrace_excess_tokens_total", "Tokens that those steps ran beyond the limit", (ENGINE, "limit")
)
UNUSED = Metric(
    "fdtrace_unused_budget_tokens_total", "Tokens of the budget that scheduling calls of steps left over"
)
REFUSED = Metric(
    "fdtrace_not_admitted_calls_total",
    "Scheduling calls after which the head of the waiting queue was not admitted; reason: as `not_admitted` in a trace",
    (ENGINE, "reason"),
)
PREEMPTED = Metric("fdtrace_preemptions_total", "Requests preempted")
DISCARDED = Metric(
    "fdtrace_discarded_tokens_total", "Computed tokens that preemptions threw away, to be computed again"
)
STALLED = Metric("fdtrace_stalled_decodes_total", "Decodes that did not run in a step, for want of KV blocks")
GROWTH = Metric(
    "fdtrace_allocator_growth_bytes_total",
    "Bytes by which the framework's allocator grew its reserved memory",
)
LOST = Metric(
    "fdtrace_lost_frames_total", "Records of the agent that were overwritten before the collector read them"
)
BUDGET_LEFT = Metric(
    "fdtrace_budget_left_tokens",
    "Tokens of the budget that the call of the last step left over",
    counter=False,
)
RESERVED = Metric(
    "fdtrace_allocator_reserved_bytes",
    "Reserved by the framework's allocator after the last step",
    counter=False,
)
PEAK_RESERVED = Metric(
    "fdtrace_allocator_peak_reserved_bytes", "Most that was reserved, in any recorded step", counter=False
)
LAG = Metric(
    "fdtrace_scheduling_lag_steps",
    "Steps whose outputs the last scheduling call did not know yet; only of engines that schedule ahead",
    counter=False,
)
STANDSTILL = Metric(
    "fdtrace_standstill_seconds",
    "Seconds since anything moved, while requests wait or run; 0: it moves",
    counter=False,
)
LAST_STEP = Metric(
    "fdtrace_last_step_timestamp_seconds", "When the last step began, seconds since 1970", counter=False
)
ENGINE_INFO = Metric(
    "fdtrace_engine_info",
    "Always 1; the labels name the recorded engine",
    (ENGINE, "name", "version", "role", "dp_rank", "pid"),
    counter=False,
)
TRACE_BYTES = Metric(
    "fdtrace_trace_bytes", "Size of the recording on disk, its parts included", (), counter=False
)
COLLECTOR_CPU = Metric("fdtrace_collector_cpu_seconds_total", "CPU time of the process that collects", ())
COLLECTOR_MEMORY = Metric(
    "fdtrace_collector_resident_bytes", "Memory of the process that collects", (), counter=False
)
COLLECTOR_RESTARTS = Metric(
    "fdtrace_collector_restarts_total", "How often that process ended and was started again", ()
)
OWN_CPU = Metric(
    "fdtrace_metrics_cpu_seconds_total", "CPU time of the process that answers with these metrics", ()
)
READ_ERROR = Metric(
    "fdtrace_read_error",
    "1 if the recording could not be read: then the other metrics are missing",
    (),
    counter=False,
)

METRICS = (
    STEPS, TOKENS, EXCEEDED, EXCESS, UNUSED, REFUSED, PREEMPTED, DISCARDED, STALLED, GROWTH, LOST, BUDGET_LEFT,
    RESERVED, PEAK_RESERVED, LAG, STANDSTILL, LAST_STEP, ENGINE_INFO, TRACE_BYTES, COLLECTOR_CPU, COLLECTOR_MEMORY,
    COLLECTOR_RESTARTS, OWN_CPU, READ_ERROR,
)  # fmt: skip
"""All of them, in the order in which they are exported."""
