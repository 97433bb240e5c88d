"""Exports every table of a trace as a file of Parquet or CSV."""

from __future__ import annotations

import argparse
import sys


def export_tables(args: argparse.Namespace) -> None:
    """Write a directory with a file for each table.

    Raises:
        UsageError: it cannot be written.
        TraceError: the trace cannot be read.
    """
    from fdtrace.recorder import schema
    from fdtrace.recorder.sql_text import quoted
    from fdtrace.recorder.trace.trace import open_trace, reading
    from fdtrace.whole_file import check_directory, whole_file

    check_directory(
        args.output, force=args.force, names={f"{table.name}.{args.to}" for table in schema.TABLES}
    )
    options = {"parquet": "(FORMAT parquet)", "csv": "(FORMAT csv, HEADER)"}[args.to]
    count = 0
    with whole_file(args.output) as half:
        half.mkdir(mode=0o755)
        with open_trace(args.trace, writable=half.resolve()) as trace, reading(args.trace):
            for table in schema.TABLES:
                target = half.resolve() / f"{table.name}.{args.to}"
                order = ", ".join(table.order_by)
                trace.db.execute(f"COPY (FROM {table.name} ORDER BY {order}) TO '{quoted(target)}' {options}")
                count += 1
    sys.stderr.write(
        f"fdtrace: {count} tables in {args.output}; docs/trace.md says what their columns mean\n"
    )
