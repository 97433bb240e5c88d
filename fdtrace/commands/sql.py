"""Query a trace, also one that is being recorded. `docs/trace.md` documents its tables and views."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fdtrace.recorder.errors import UsageError

if TYPE_CHECKING:
    import duckdb

FORMATS = ("table", "csv", "json", "parquet")
TABLE_ROWS = 10_000
"""Rows of a table on a terminal at most; the other formats have no bound."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace sql`."""
    parser.add_argument("trace", type=Path, metavar="TRACE")
    parser.add_argument("query", metavar="QUERY", help='such as "SELECT * FROM exceeded"')
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: table")
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="write there; parquet on a terminal needs it"
    )


def run(args: argparse.Namespace) -> int:
    """Run the query and print or write its rows."""
    from fdtrace.recorder.trace import open_trace

    if args.format == "parquet" and args.out is None and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal", hint="--out rows.parquet, or redirect stdout")
    with open_trace(args.trace) as trace:
        relation = trace.query(args.query)
        if args.format == "table" and args.out is None:
            _print_table(relation)
        else:
            _write(relation, args.format, args.out)
    return 0


def _print_table(relation: duckdb.DuckDBPyRelation) -> None:
    from rich.console import Console
    from rich.table import Table

    from fdtrace.recorder.trace import running

    table = Table(*relation.columns, box=None)
    with running():
        rows = relation.limit(TABLE_ROWS + 1).fetchall()
    for row in rows[:TABLE_ROWS]:
        table.add_row(*("" if value is None else str(value) for value in row))
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, highlight=False).print(table, soft_wrap=True)
    if len(rows) > TABLE_ROWS:
        sys.stderr.write(f"fdtrace: the first {TABLE_ROWS} rows; --format csv gives all\n")


def _write(relation: duckdb.DuckDBPyRelation, kind: str, out: Path | None) -> None:
    from fdtrace.recorder.trace import write_relation

    if kind == "table":
        kind = "csv"
    write_relation(relation, kind, out)
