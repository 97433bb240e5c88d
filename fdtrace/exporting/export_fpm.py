"""Exports the steps of a recording as ForwardPassMetrics, in the file format of Dynamo's FPM trace.

One JSON object a line: `dynamo.fpm.trace.v1`, as `DYN_FPM_TRACE=1 DYN_FPM_MODE=full` writes it. AISimulate learns the
duration of a forward from such files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fdtrace.exporting.forward_pass_metrics import MetricsOfSteps

SCHEMA = "dynamo.fpm.trace.v1"
NS_A_MS = 1_000_000
GZIP_LEVEL = 6


def export_fpm(args: argparse.Namespace) -> None:
    """Write the file; packed by gzip if its name ends with `.gz`.

    Raises:
        UsageError: the file cannot be written.
        TraceError: the trace cannot be read.
    """
    from fdtrace.recorder.trace.trace import open_trace, reading
    from fdtrace.whole_file import whole_file

    with open_trace(args.trace) as trace:
        engine = trace.checked_engine(args.engine)
        with reading(args.trace), whole_file(args.output, force=args.force) as half:
            metrics = MetricsOfSteps(
                trace, engine, round(args.step_ms * NS_A_MS), each_request=args.request_lengths
            )
            count = 0
            with _opened(half, packed=args.output.suffix == ".gz") as file:
                for line in _lines(metrics, engine):
                    file.write(line)
                    count += 1
    for note in _notes(metrics, args.step_ms):
        sys.stderr.write(f"fdtrace: {note}\n")
    sys.stderr.write(f"fdtrace: ForwardPassMetrics of {count:,} steps in {args.output}\n")


def _opened(path: Path, *, packed: bool) -> IO[str]:
    if packed:
        return gzip.open(path, "wt", compresslevel=GZIP_LEVEL, encoding="utf-8", newline="\n")
    return open(path, "w", encoding="utf-8", newline="\n")


def _lines(metrics: MetricsOfSteps, engine: dict[str, Any]) -> Iterator[str]:
    begin = None
    for record in metrics.records():
        begin = record.end_ns if begin is None else begin
        source = {
            "namespace": "fdtrace",
            "component": engine["name"],
            "producer_id": record.fields["worker_id"],
        }
        event = {
            "schema": SCHEMA,
            "source": source,
            "capture_mode": "full",
            "observed_at_unix_ms": record.end_ns // NS_A_MS,
            "fpm": record.fields,
        }
        line = {"timestamp": max(0, record.end_ns - begin) // NS_A_MS, "event": event}
        yield json.dumps(line, separators=(",", ":")) + "\n"


def _notes(metrics: MetricsOfSteps, step_ms: float) -> Iterator[str]:
    """What a reader of the file should know."""
    if not metrics.has_clock:
        yield f"the trace has no times: wall_time is {step_ms:g} ms for each step, and says nothing"
    elif metrics.num_untimed:
        yield (
            f"of {metrics.num_untimed:,} steps it is not recorded how long they took: their wall_time is 0, which "
            "readers take for an idle engine"
        )
    if metrics.num_other_queues:
        yield (
            f"queued_requests: after {metrics.num_other_queues:,} steps the engine counted other waiting requests than "
            "those whose arrivals, preemptions and first steps the trace holds"
        )
