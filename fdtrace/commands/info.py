"""What is in a trace: the recording, its engines, its figures, what the engine could not tell."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.recorder.trace import Trace

LONGEST = 10_000
"""Characters of a line."""
MOST_ENGINES = 1000
"""Engines that are told of."""
MOST_LOSSES = 100
"""Losses of an engine that are printed."""

SUMMARY = """
SELECT count(*) AS steps, min(step) AS first, max(step) AS last, epoch_ns(max(ts)) - epoch_ns(min(ts)) AS ns,
       sum(num_tokens)::BIGINT AS tokens, max(num_tokens) AS most, sum(num_draft_tokens)::BIGINT AS drafts,
       sum(num_accepted_tokens)::BIGINT AS accepted, sum(num_preempted)::BIGINT AS preempted
FROM step WHERE engine_id = $1
"""

CALLS = """
SELECT coalesce(sum(num_calls), 0)::BIGINT AS calls, coalesce(sum(num_calls) FILTER (idle), 0)::BIGINT AS idle
FROM call WHERE engine_id = $1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace info`."""
    parser.add_argument("trace", type=Path, metavar="TRACE")
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")


def run(args: argparse.Namespace) -> int:
    """Print what the trace holds."""
    import json

    from fdtrace.recorder.trace import open_trace

    with open_trace(args.trace) as trace:
        found = collect(trace)
    if args.json:
        print(json.dumps(found, default=str))
    else:
        _print(found)
    return 0


def collect(trace: Trace) -> dict[str, Any]:
    """What `info` tells, as JSON."""
    from fdtrace.recorder.standstill import has_calls, standstill

    head = trace.head
    engines = []
    for engine in trace.engines()[:MOST_ENGINES]:
        key = [engine["engine_id"]]
        exceeded = trace.rows(
            "SELECT limit_name, count(*) AS steps, max(excess_tokens) AS most FROM exceeded WHERE engine_id = $1 "
            "GROUP BY ALL ORDER BY steps DESC",
            key,
        )
        events = trace.rows(
            "SELECT kind, count(*) AS n FROM event WHERE engine_id = $1 GROUP BY ALL ORDER BY kind", key
        )
        engines.append(
            {
                "engine": engine,
                "steps": trace.rows(SUMMARY, key)[0],
                "requests": trace.rows("SELECT count(*) AS n FROM request WHERE engine_id = $1", key)[0]["n"],
                "exceeded": exceeded,
                "events": {row["kind"]: row["n"] for row in events},
                "lost": trace.rows(
                    "SELECT detail FROM event WHERE engine_id = $1 AND kind = 'lost' ORDER BY step", key
                ),
                "unknown": _unknown(trace, key),
                "calls": trace.rows(CALLS, key)[0] if has_calls(trace) else None,
                "standstill": still.as_dict() if (still := standstill(trace, engine)) else None,
            }
        )
    return {
        "path": str(trace.path),
        "bytes": trace.path.stat().st_size,
        "trace": dict(head, notes=list(trace.notes())),
        "engines": engines,
        "problems": trace.problems(),
    }


def _unknown(trace: Trace, key: list[Any]) -> list[str]:
    """The columns of `step` of which this engine told nothing."""
    from fdtrace.recorder import schema

    counts = ", ".join(f"count({name}) AS {name}" for name in schema.STEP.names)
    row = trace.rows(f"SELECT {counts} FROM step WHERE engine_id = $1", key)[0]
    return [name for name, n in row.items() if n == 0] if row["step"] else []


def _print(found: dict[str, Any]) -> None:
    from fdtrace.recorder.printable import printable

    trace = found["trace"]
    ended = (
        f"ended {trace['ended_at']} UTC by {trace['ended_by']}" if trace["ended_at"] else "still recording"
    )
    lines = [
        f"{found['path']}  {found['bytes']:,} bytes, schema {trace['schema_version']}",
        f"{trace['state']}: recorded by fdtrace {trace['fdtrace_version']}, begun {trace['created_at']} UTC, {ended}",
        *(f"note: {note}" for note in trace["notes"]),
        *(f"PROBLEM: {problem}" for problem in found["problems"]),
    ]
    for one in found["engines"]:
        lines += ["", *_engine_lines(one)]
    for line in lines:
        print(printable(line, LONGEST))


def _engine_lines(one: dict[str, Any]) -> list[str]:
    engine, steps = one["engine"], one["steps"]
    speculation = (
        f"{engine['spec_method']} K={engine['num_speculative_tokens']}" if engine["spec_method"] else "none"
    )
    lines = [
        f"engine {engine['engine_id']}: {engine['name']} {engine['version'] or ''}, pid {engine['pid']} on "
        f"{engine['host']}, role {engine['role']}, rank {engine['dp_rank']}",
        f"  max_num_batched_tokens {engine['max_num_batched_tokens']}, max_num_seqs {engine['max_num_seqs']}, "
        f"{engine['num_blocks']} blocks of {engine['block_size']}, speculation {speculation}",
        f"  steps      {_steps(steps)}, {one['requests']:,} requests",
        "  calls      " + _calls(one["calls"]),
    ]
    if one["standstill"]:
        lines.append(f"  HANGS      {one['standstill']['text']}")
    if steps["steps"]:
        lines.append(
            f"  tokens     {_number(steps['tokens'])}, at most {_number(steps['most'])} a step; "
            f"drafts {steps['drafts'] or 0:,}, accepted {steps['accepted'] or 0:,}; "
            f"preemptions {steps['preempted'] or 0}"
        )
    for row in one["exceeded"]:
        lines.append(
            f"  exceeded   {row['limit_name']} in {row['steps']} steps, by {row['most']} tokens at most"
        )
    if engine["max_num_batched_tokens"] is None:
        lines.append("  exceeded   cannot be said: max_num_batched_tokens is NULL")
    elif steps["steps"] and not one["exceeded"]:
        lines.append("  exceeded   no limit")
    lines.append("  events     " + ", ".join(f"{kind} {n}" for kind, n in one["events"].items()))
    lines += [f"  lost       {row['detail']}" for row in one["lost"][:MOST_LOSSES]]
    if len(one["lost"]) > MOST_LOSSES:
        lines.append(f"  lost       {len(one['lost']) - MOST_LOSSES} times more")
    if one["unknown"]:
        lines.append("  not told   " + ", ".join(one["unknown"]))
    return lines


def _steps(steps: dict[str, Any]) -> str:
    if not steps["steps"]:
        return "0: no forward ran"
    duration = "an unknown time" if steps["ns"] is None else f"{steps['ns'] / 1e9:.1f} s"
    return f"{steps['steps']:,} ({steps['first']} to {steps['last']}) in {duration}"


def _calls(calls: dict[str, int] | None) -> str:
    if calls is None:
        return "not recorded: schema 1"
    return f"{calls['calls']:,} of schedule(), {calls['idle']:,} of them handed out nothing"


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"
