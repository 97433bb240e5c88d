"""Write a recording in a format of others: as a timeline, as a request trace, as metrics of its steps, as tables.

    fdtrace export T --to perfetto -o t.pftrace -f pr7499      the recording, and a replay beside it
    fdtrace export T --to mooncake -o t.jsonl                  its requests, for other simulators
    fdtrace export T --to fpm -o t.jsonl.gz                    ForwardPassMetrics of each step, as Dynamo writes them
    fdtrace export T --to otlp --endpoint http://127.0.0.1:4318   spans of requests and steps, to a collector
    fdtrace export T --to parquet -o DIRECTORY                 every table, a file each

docs/export.md says what each format holds, and how to open it.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

TIMELINES = ("perfetto", "chrome")
REQUEST_TRACES = ("mooncake", "bailian", "azure")
STEP_METRICS = ("fpm",)
SPANS = ("otlp",)
TABLES = ("parquet", "csv")
FORMATS = (*TIMELINES, *REQUEST_TRACES, *STEP_METRICS, *SPANS, *TABLES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace export`."""
    from fdtrace.build_replays import add_replay_arguments

    add_replay_arguments(parser)
    parser.add_argument("--to", required=True, choices=FORMATS, help="the format")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="PATH", help="the file; of tables, the directory"
    )
    parser.add_argument(
        "--endpoint", metavar="URL", help="otlp: the collector, as http://127.0.0.1:4318; or -o, a file"
    )
    parser.add_argument("--force", action="store_true", help="replace the file or tables that are there")
    parser.add_argument(
        "--each-decode",
        action="store_true",
        help="timelines: a slice for each decode of each request, not one for those that follow each other",
    )
    parser.add_argument(
        "--step-ms",
        type=float,
        default=20.0,
        metavar="MS",
        help="how long a step counts if the trace has no times, as one of a simulation (default 20)",
    )
    parser.add_argument(
        "--block-size",
        type=int,
        metavar="N",
        help="request traces: tokens of a block of hash_ids (default: the format's own)",
    )
    parser.add_argument(
        "--request-lengths",
        action="store_true",
        help="fpm: also the tokens of each request (extend_lengths, past_kv_lengths), which AISimulate reads",
    )


def run(args: argparse.Namespace) -> int:
    """Write the file."""
    from fdtrace.whole_file import check_target

    if not 0 < args.step_ms < 1e9:
        raise UsageError(f"--step-ms is {args.step_ms:g}", hint="more than 0")
    _check_where_to(args)
    if args.output is not None and args.to not in TABLES:
        check_target(args.output, force=args.force, source=args.trace)
    if args.to not in TIMELINES and (args.formula or args.variant or args.scheduler):
        raise UsageError(
            f"--to {args.to} writes the recording alone",
            why="a replay has no requests or tables of its own",
            hint="--to perfetto draws replays beside the recording; without -f, -w and --scheduler",
        )
    _writer_of(args.to)(args)
    return 0


def _check_where_to(args: argparse.Namespace) -> None:
    """UsageError unless there is one place to write to."""
    if args.endpoint is not None and args.to not in SPANS:
        raise UsageError(f"--to {args.to} takes no --endpoint", why="only spans are sent", hint="-o PATH")
    if (args.output is None) == (args.endpoint is None):
        hint = "-o PATH" if args.to not in SPANS else "--endpoint http://127.0.0.1:4318, or -o PATH"
        given = "nowhere" if args.output is None else "both to a file and to a collector"
        raise UsageError(f"--to {args.to} would write {given}", hint=hint)


def _writer_of(name: str) -> Callable[[argparse.Namespace], None]:
    if name in TIMELINES:
        from fdtrace.exporting.export_timeline import export_timeline

        return export_timeline
    if name in STEP_METRICS:
        from fdtrace.exporting.export_fpm import export_fpm

        return export_fpm
    if name in SPANS:
        from fdtrace.exporting.export_otlp import export_otlp

        return export_otlp
    if name in TABLES:
        from fdtrace.exporting.export_tables import export_tables

        return export_tables
    from fdtrace.exporting.export_requests import export_requests

    return export_requests
