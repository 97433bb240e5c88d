"""Exports a recording as OpenTelemetry spans: to the collector that `--endpoint` names, or to a file of JSON lines.

Nothing is sent anywhere else, and nothing without this command. `fdtrace/exporting/otlp_spans.py` says what is sent.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path

    from fdtrace.exporting.otlp_spans import OtlpSpan
    from fdtrace.recorder.trace.trace import Trace

TRACES_PATH = "/v1/traces"
"""Where a collector takes spans: https://opentelemetry.io/docs/specs/otlp/#otlphttp-request"""


def export_otlp(args: argparse.Namespace) -> None:
    """Send the spans, or write the file.

    Raises:
        UsageError: the trace has no times, a package is missing, or the collector did not take the spans.
        TraceError: the trace cannot be read.
    """
    from fdtrace.exporting.otlp_sink import CollectorSink, FileSink, SpanSender
    from fdtrace.recorder.trace.trace import open_trace, reading
    from fdtrace.whole_file import whole_file

    url = None if args.endpoint is None else collector_url(args.endpoint)
    with open_trace(args.trace) as trace:
        engine = trace.checked_engine(args.engine)
        spans = _spans(trace, engine, args.trace)
        with reading(args.trace):
            if url is not None:
                sender = SpanSender(engine, CollectorSink(url))
                sender.send(spans)
            else:
                with (
                    whole_file(args.output, force=args.force) as half,
                    open(half, "w", encoding="utf-8") as file,
                ):
                    sender = SpanSender(engine, FileSink(file))
                    sender.send(spans)
    sys.stderr.write(f"fdtrace: {sender.count:,} spans {'to ' + url if url else f'in {args.output}'}\n")


def collector_url(endpoint: str) -> str:
    """The address that takes spans, of a collector's address. UsageError if it is none."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"--endpoint is {endpoint!r}",
            why="spans are sent by OTLP over HTTP",
            hint="--endpoint http://127.0.0.1:4318",
        )
    return endpoint if parts.path not in ("", "/") else endpoint.rstrip("/") + TRACES_PATH


def _spans(trace: Trace, engine: dict[str, Any], path: Path) -> Iterator[OtlpSpan]:
    from fdtrace.exporting.otlp_spans import request_spans, step_spans
    from fdtrace.timeline.recorded_run import recorded_run

    run, has_clock = recorded_run(trace, engine["engine_id"], 1)
    if not has_clock:
        raise UsageError(
            f"{path} has no times",
            why="each span has a beginning and an end",
            hint="--to perfetto --step-ms 20",
        )
    return chain(request_spans(trace, engine["engine_id"], run), step_spans(trace, engine, run))
