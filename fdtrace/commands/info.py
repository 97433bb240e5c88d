"""What is in a trace: the recording, its engines, its figures, what the engine could not tell."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fdtrace.recorder.trace import Trace

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
    import json

    from fdtrace.recorder.standstill import has_calls, standstill

    head = trace.head
    engines = []
    for engine in trace.engines():
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
                "lost": trace.rows("SELECT detail FROM event WHERE engine_id = $1 AND kind = 'lost'", key),
                "unknown": _unknown(trace, key),
                "calls": trace.rows(CALLS, key)[0] if has_calls(trace) else None,
                "standstill": still.as_dict() if (still := standstill(trace, engine)) else None,
            }
        )
    return {
        "path": str(trace.path),
        "bytes": trace.path.stat().st_size,
        "trace": dict(head, notes=json.loads(head["notes"] or "[]")),
        "engines": engines,
    }


def _unknown(trace: Trace, key: list[Any]) -> list[str]:
    """The columns of `step` of which this engine told nothing."""
    from fdtrace.recorder import schema

    counts = ", ".join(f"count({name}) AS {name}" for name in schema.STEP.names)
    row = trace.rows(f"SELECT {counts} FROM step WHERE engine_id = $1", key)[0]
    return [name for name, n in row.items() if n == 0] if row["step"] else []


def _print(found: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    trace = found["trace"]
    console.print(
        f"[b]{found['path']}[/b]  {found['bytes']:,} bytes, schema {trace['schema_version']}", markup=True
    )
    ended = (
        f"ended {trace['ended_at']} UTC by {trace['ended_by']}" if trace["ended_at"] else "still recording"
    )
    console.print(f"{trace['state']}: recorded by fdtrace {trace['fdtrace_version']}, "
                  f"begun {trace['created_at']} UTC, {ended}")  # fmt: skip
    for note in trace["notes"]:
        console.print(f"note: {note}", markup=False)
    for one in found["engines"]:
        for line in _engine_lines(one):
            console.print(line, markup=False)


def _engine_lines(one: dict[str, Any]) -> list[str]:
    engine, steps = one["engine"], one["steps"]
    speculation = (
        f"{engine['spec_method']} K={engine['num_speculative_tokens']}" if engine["spec_method"] else "none"
    )
    lines = [
        "",
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
            f"  tokens     {steps['tokens']:,}, at most {steps['most']} a step; drafts {steps['drafts'] or 0:,}, "
            f"accepted {steps['accepted'] or 0:,}; preemptions {steps['preempted'] or 0}"
        )
    for row in one["exceeded"]:
        lines.append(
            f"  exceeded   {row['limit_name']} in {row['steps']} steps, by {row['most']} tokens at most"
        )
    if steps["steps"] and not one["exceeded"]:
        lines.append("  exceeded   no limit")
    lines.append("  events     " + ", ".join(f"{kind} {n}" for kind, n in one["events"].items()))
    lines += [f"  lost       {row['detail']}" for row in one["lost"]]
    if one["unknown"]:
        lines.append("  not told   " + ", ".join(one["unknown"]))
    return lines


def _steps(steps: dict[str, Any]) -> str:
    if not steps["steps"]:
        return "0: no forward ran"
    return f"{steps['steps']:,} ({steps['first']} to {steps['last']}) in {(steps['ns'] or 0) / 1e9:.1f} s"


def _calls(calls: dict[str, int] | None) -> str:
    if calls is None:
        return "not recorded: schema 1"
    return f"{calls['calls']:,} of schedule(), {calls['idle']:,} of them handed out nothing"
