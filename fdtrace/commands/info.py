"""What is in a trace: the recording, its engines, its figures, what the engine did not say."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from fdtrace.trace_argument import trace_argument

if TYPE_CHECKING:
    from fdtrace.recorder.trace.trace import Trace

LONGEST = 10_000
"""Most characters of a line."""
MOST_LOSSES = 100
"""Most losses of an engine that are printed."""

SUMMARY = """
SELECT engine_id, count(*) AS steps, min(step) AS first, max(step) AS last,
       epoch_ns(max(ts)) - epoch_ns(min(ts)) AS ns,
       sum(num_tokens)::BIGINT AS tokens, max(num_tokens) AS most, sum(num_draft_tokens)::BIGINT AS drafts,
       sum(num_accepted_tokens)::BIGINT AS accepted, sum(num_preempted)::BIGINT AS preempted
FROM step GROUP BY engine_id
"""
NO_CALLS = {"calls": 0, "idle": 0}
NO_STEPS = dict.fromkeys(("first", "last", "ns", "tokens", "most", "drafts", "accepted", "preempted"))

EXCEEDED = """
SELECT engine_id, limit_name, count(*) AS steps, max(excess_tokens) AS most FROM ({exceeded})
GROUP BY engine_id, limit_name ORDER BY steps DESC
"""
EVENTS = "SELECT engine_id, kind, count(*) AS n FROM event GROUP BY engine_id, kind ORDER BY kind"
LOST = "SELECT engine_id, detail FROM event WHERE kind = 'lost' ORDER BY step"
REQUESTS = "SELECT engine_id, count(*) AS n FROM request GROUP BY engine_id"

CALLS = """
SELECT engine_id, sum(num_calls)::BIGINT AS calls, coalesce(sum(num_calls) FILTER (idle), 0)::BIGINT AS idle
FROM call GROUP BY engine_id
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace info`."""
    parser.add_argument("trace", type=trace_argument, metavar="TRACE")
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")


def run(args: argparse.Namespace) -> int:
    """Print what the trace holds."""
    import json

    from fdtrace.recorder.trace.trace import open_trace

    with open_trace(args.trace) as trace:
        summary = collect(trace)
    if args.json:
        print(json.dumps(summary, default=str))
    else:
        _print(summary)
    return 0


def collect(trace: Trace) -> dict[str, Any]:
    """What `info` prints, as JSON."""
    from fdtrace.recorder import schema_views
    from fdtrace.recorder.trace.standstill import has_calls, standstill

    summaries, requests = _by_engine(trace, SUMMARY), _by_engine(trace, REQUESTS)
    over = EXCEEDED.format(exceeded=schema_views.EXCEEDED.query)
    exceeded, events, lost = (_by_engine(trace, query) for query in (over, EVENTS, LOST))
    calls = _by_engine(trace, CALLS) if has_calls(trace) else None
    unknown = _unknown(trace)
    engines = []
    for engine in trace.engines():
        key = engine["engine_id"]
        steps = summaries.get(key, [{"steps": 0, **NO_STEPS}])[0]
        called = (calls or {}).get(key, [NO_CALLS])[0]
        still = standstill(trace, engine) if called["idle"] else None
        engines.append(
            {
                "engine": engine,
                "steps": steps,
                "requests": requests.get(key, [{"n": 0}])[0]["n"],
                "exceeded": exceeded.get(key, []),
                "events": {row["kind"]: row["n"] for row in events.get(key, [])},
                "lost": lost.get(key, []),
                "unknown": unknown.get(key, []) if steps["steps"] else [],
                "calls": None if calls is None else called,
                "standstill": still.as_dict() if still else None,
            }
        )
    return {
        "path": str(trace.path),
        "bytes": trace.path.stat().st_size,
        "trace": dict(trace.head, notes=list(trace.notes())),
        "engines": engines,
        "problems": trace.problems(),
    }


def _by_engine(trace: Trace, query: str) -> dict[Any, list[dict[str, Any]]]:
    """The rows of a query on tables by their `engine_id`, without it.

    `Trace.rows` would make the schema's views first, which takes as long as all of these queries together.
    """
    from fdtrace.recorder.trace.trace import reading

    with reading(trace.path):
        result = trace.tables.execute(query)
        names = [column[0] for column in result.description or ()]
        rows = [dict(zip(names, row, strict=True)) for row in result.fetchall()]
    by_engine: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        by_engine.setdefault(row.pop("engine_id"), []).append(row)
    return by_engine


def _unknown(trace: Trace) -> dict[Any, list[str]]:
    """For each engine, the columns of `step` that have no value."""
    from fdtrace.recorder import schema

    names = [name for name in schema.STEP.names if name != "engine_id"]
    counts = ", ".join(f"count({name}) AS {name}" for name in names)
    rows = _by_engine(trace, f"SELECT engine_id, {counts} FROM step GROUP BY engine_id")
    return {key: [name for name, n in row[0].items() if n == 0] for key, row in rows.items()}


def _print(summary: dict[str, Any]) -> None:
    from fdtrace.recorder.printable import printable

    trace = summary["trace"]
    ended = (
        f"ended {trace['ended_at']} UTC by {trace['ended_by']}" if trace["ended_at"] else "still recording"
    )
    lines = [
        f"{summary['path']}  {summary['bytes']:,} bytes, schema {trace['schema_version']}",
        f"{trace['state']}: recorded by fdtrace {trace['fdtrace_version']}, begun {trace['created_at']} UTC, {ended}",
        *(f"note: {note}" for note in trace["notes"]),
        *(f"PROBLEM: {problem}" for problem in summary["problems"]),
    ]
    for engine in summary["engines"]:
        lines += ["", *_engine_lines(engine)]
    if not summary["engines"]:
        lines.append("no engine: no scheduling call was recorded")
    for line in lines:
        print(printable(line, LONGEST))


def _engine_lines(summary: dict[str, Any]) -> list[str]:
    engine, steps = summary["engine"], summary["steps"]
    speculation = (
        f"{engine['spec_method']} K={engine['num_speculative_tokens']}" if engine["spec_method"] else "none"
    )
    lines = [
        f"engine {engine['engine_id']}: {engine['name']} {engine['version'] or ''}, pid {engine['pid']} on "
        f"{engine['host']}, role {engine['role']}, rank {engine['dp_rank']}",
        f"  max_num_batched_tokens {engine['max_num_batched_tokens']}, max_num_seqs {engine['max_num_seqs']}, "
        f"{engine['num_blocks']} blocks of {engine['block_size']}, speculation {speculation}",
        f"  steps      {_steps(steps)}, {summary['requests']:,} requests",
        "  calls      " + _calls(summary["calls"], engine["name"]),
    ]
    if summary["standstill"]:
        lines.append(f"  HANGS      {summary['standstill']['text']}")
    if steps["steps"]:
        lines.append(
            f"  tokens     {_number(steps['tokens'])}, at most {_number(steps['most'])} a step; "
            f"drafts {steps['drafts'] or 0:,}, accepted {steps['accepted'] or 0:,}; "
            f"preemptions {steps['preempted'] or 0}"
        )
    for row in summary["exceeded"]:
        lines.append(
            f"  exceeded   {row['limit_name']} in {row['steps']} steps, by {row['most']} tokens at most"
        )
    if engine["max_num_batched_tokens"] is None:
        lines.append("  exceeded   cannot be said: max_num_batched_tokens is NULL")
    elif steps["steps"] and not summary["exceeded"]:
        lines.append("  exceeded   no limit")
    lines.append("  events     " + ", ".join(f"{kind} {n}" for kind, n in summary["events"].items()))
    lines += [f"  lost       {row['detail']}" for row in summary["lost"][:MOST_LOSSES]]
    if len(summary["lost"]) > MOST_LOSSES:
        lines.append(f"  lost       {len(summary['lost']) - MOST_LOSSES} times more")
    if summary["unknown"]:
        lines.append("  not told   " + ", ".join(summary["unknown"]))
    return lines


def _steps(steps: dict[str, Any]) -> str:
    if not steps["steps"]:
        return "0: no forward ran"
    duration = "an unknown time" if steps["ns"] is None else f"{steps['ns'] / 1e9:.1f} s"
    return f"{steps['steps']:,} ({steps['first']} to {steps['last']}) in {duration}"


def _calls(calls: dict[str, int] | None, engine: str) -> str:
    from fdtrace.recorder.trace.engine_terms import scheduling_call

    if calls is None:
        return "not recorded: schema 1"
    return f"{calls['calls']:,} of {scheduling_call(engine)}, {calls['idle']:,} of them handed out nothing"


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
