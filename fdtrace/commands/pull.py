"""Fetch a trace of a lake into a file, which then is a trace like any other.

    fdtrace pull ducklake:traces/20261127T035400-8c1d -o t.duckdb

The beginning of an id is enough where no other trace has it.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace pull`."""
    from fdtrace.recorder.lake.lake_name import parse_lake_trace

    parser.add_argument("lake_trace", type=parse_lake_trace, metavar="LAKE/TRACE_ID")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="TRACE", help="a new file")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")


def run(args: argparse.Namespace) -> int:
    """Write the file."""
    import os

    from fdtrace.progress import Progress
    from fdtrace.recorder.errors import UsageError
    from fdtrace.recorder.lake.pull_trace import pull_trace
    from fdtrace.whole_file import check_target, whole_file

    trace = args.lake_trace
    if trace.trace_id is None:
        raise UsageError(
            f"{trace.lake} is a lake", hint=f"`fdtrace list '{trace.lake}'` has the ids: LAKE/ID"
        )
    os.umask(os.umask(0o077) | 0o077)  # as a recording: nobody else may read it
    check_target(args.output, force=args.force, source=Path(trace.lake.connection))
    with whole_file(args.output, force=args.force) as half:
        trace_id = pull_trace(trace, half)
    Progress().note(f"{trace_id} in {args.output}")
    return 0
