"""Query a trace, also one that is being recorded, or the results of a sweep, or all traces of a lake. `docs/trace.md`
documents the tables and views of a trace; the results of a sweep are the table `sweep`; docs/fleet.md is about lakes.

A query reads only the trace: no other file, no network, no setting. It may take two minutes and half of the machine's
memory, unless --timeout and --memory say otherwise. Ctrl-C ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fdtrace.recorder.errors import UsageError
from fdtrace.trace_argument import trace_argument

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from fdtrace.recorder.lake.lake_name import LakeTraceName
    from fdtrace.recorder.trace.query import Limits
    from fdtrace.recorder.trace.trace import Trace

FORMATS = ("table", "csv", "json", "parquet")
TABLE_ROWS = 10_000
"""Most rows of a table on a terminal. The other formats have no limit."""
TIMEOUT = 120.0
"""Seconds that a query may take, unless --timeout says otherwise."""
PRIVATE = 0o600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace sql`."""
    parser.add_argument("trace", type=trace_argument, metavar="TRACE")
    parser.set_defaults(takes_lakes=True)
    parser.add_argument("query", metavar="QUERY", help='such as "SELECT * FROM exceeded"')
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: table")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="PATH", help="write there; parquet on a terminal needs it"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=TIMEOUT,
        metavar="S",
        help=f"seconds that the query may take (default {TIMEOUT:g}; 0: as long as it wants)",
    )
    parser.add_argument(
        "--memory", metavar="SIZE", help="memory that it may use, as 4GiB (default: half of the machine's)"
    )


def run(args: argparse.Namespace) -> int:
    """Run the query and print or write its rows."""
    from fdtrace.recorder.trace.query import Limits
    from fdtrace.sizes import size_of

    if args.format == "parquet" and args.out is None and sys.stdout.isatty():
        raise UsageError("Parquet is not for a terminal", hint="--out rows.parquet, or redirect stdout")
    if not args.timeout >= 0:
        raise UsageError(f"--timeout is {args.timeout:g}", hint="give seconds, or 0 for no limit")
    memory = size_of(args.memory, "--memory") if args.memory else None
    limits = Limits(args.timeout or None, memory)
    if args.format == "table" and args.out is None:
        with _opened(args.trace, memory, None) as trace:
            _print_table(trace, args.query, limits)
        return 0
    kind = "csv" if args.format == "table" else args.format
    with _rows_file(args.out) as file:
        with _opened(args.trace, memory, file.parent) as trace:
            _write(trace, args.query, kind, limits, file)
        _deliver(file, args.out)
    return 0


def _opened(
    source: Path | LakeTraceName, memory: int | None, writable: Path | None
) -> AbstractContextManager[Trace]:
    from fdtrace.recorder.trace.result_file import open_for_queries

    if isinstance(source, Path):
        return open_for_queries(source, memory=memory, writable=writable)
    from fdtrace.recorder.lake.lake_views import open_lake_for_queries

    return open_lake_for_queries(source.lake, memory=memory, writable=writable)


def _print_table(trace: Trace, query: str, limits: Limits) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fdtrace.recorder.printable import printable
    from fdtrace.recorder.trace.query import bounded, running, text_rows

    def ask() -> tuple[list[str], list[tuple[str | None, ...]]]:
        relation = trace.query(query)
        with running():
            return relation.columns, text_rows(relation, TABLE_ROWS + 1)

    names, rows = bounded(trace.db, ask, limits)
    table = Table(box=None)
    for name in names:
        table.add_column(Text(printable(name)))
    for row in rows[:TABLE_ROWS]:
        table.add_row(*(Text("" if value is None else printable(value)) for value in row))
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, highlight=False).print(table, soft_wrap=True)
    if len(rows) > TABLE_ROWS:
        sys.stderr.write(f"fdtrace: the first {TABLE_ROWS} rows; --format csv gives all\n")


def _write(trace: Trace, query: str, kind: str, limits: Limits, file: Path) -> None:
    from fdtrace.recorder.trace.query import bounded, copy_rows, running

    def ask() -> None:
        relation = trace.query(query)
        with running():
            copy_rows(relation, kind, file)

    bounded(trace.db, ask, limits)


@contextlib.contextmanager
def _rows_file(out: Path | None) -> Iterator[Path]:
    """A file in a private directory that first gets the query's rows: the query may write nowhere else.

    The directory is beside `out`, so that the complete file can be moved there.
    """
    beside = None
    if out is not None:
        if out.is_dir():
            raise UsageError(f"{out} is a directory", hint="--out rows.csv")
        beside = out.resolve().parent if not out.exists() or stat.S_ISREG(out.stat().st_mode) else None
    try:
        directory = tempfile.TemporaryDirectory(prefix=".fdtrace-", dir=beside)
    except OSError as error:
        raise UsageError(f"{out} cannot be written", why=error.strerror or str(error)) from None
    with directory as path:
        yield Path(path).resolve() / "rows"


def _deliver(file: Path, out: Path | None) -> None:
    """Write the rows to `out` as a private file, or to stdout. For a terminal they are made safe to print."""
    from fdtrace.recorder.printable import printable

    if out is None:
        if sys.stdout.isatty():
            with file.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
                for line in lines:
                    print(printable(line.rstrip("\r\n"), sys.maxsize))
        else:
            with file.open("rb") as rows:
                shutil.copyfileobj(rows, sys.stdout.buffer)
            sys.stdout.buffer.flush()
        return
    try:
        if out.exists() and not stat.S_ISREG(out.stat().st_mode):
            with file.open("rb") as rows, out.open("wb") as pipe:
                shutil.copyfileobj(rows, pipe)
            return
        umask = os.umask(0)
        os.umask(umask)
        file.chmod(PRIVATE & ~umask)
        file.replace(out.resolve())
    except OSError as error:
        raise UsageError(f"{out} cannot be written", why=error.strerror or str(error)) from None
