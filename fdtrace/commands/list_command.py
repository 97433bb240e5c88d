"""The traces of a lake, the newest first: ids for `LAKE/TRACE_ID`, and what each is of.

fdtrace list ducklake:traces --deployment chat
"""

from __future__ import annotations

import argparse
from typing import Any

NEWEST = 1000
"""Most traces that are listed, unless --newest says otherwise."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace list`."""
    from fdtrace.trace_argument import lake_argument

    parser.add_argument("lake", type=lake_argument, metavar="LAKE")
    parser.add_argument("--deployment", metavar="NAME", help="of this one alone")
    parser.add_argument(
        "--newest", type=int, default=NEWEST, metavar="N", help=f"so many at most (default {NEWEST})"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a trace and line, for machines")


def run(args: argparse.Namespace) -> int:
    """Print them."""
    import json
    import sys

    from fdtrace.recorder.errors import UsageError
    from fdtrace.recorder.lake.pull_trace import list_traces

    if args.newest < 1:
        raise UsageError(f"--newest is {args.newest}", hint="1 or more")
    rows = list_traces(args.lake, deployment=args.deployment, newest=args.newest + 1)
    for row in rows[: args.newest] if args.json else ():
        print(json.dumps(row, default=str))
    if not args.json:
        _print(rows[: args.newest])
    if len(rows) > args.newest:
        sys.stderr.write(f"fdtrace: the newest {args.newest:,}; --newest gives more\n")
    return 0


def _print(rows: list[dict[str, Any]]) -> None:
    import sys

    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from fdtrace.recorder.printable import printable

    table = Table(box=None)
    for name, justify in (("trace", "left"), ("deployment", "left"), ("host", "left"), ("seconds", "right")):
        table.add_column(name, justify="right" if justify == "right" else "left")
    for name in ("engines", "steps", "requests", "exceeded"):
        table.add_column(name, justify="right")
    table.add_column("labels")
    for row in rows:
        labels = " ".join(f"{key}={value}" for key, value in (row["labels"] or {}).items())
        lasted = row["ended_at"] and (row["ended_at"] - row["created_at"]).total_seconds()
        counts = [row[f"num_{name}"] for name in ("engines", "steps", "requests", "exceeded")]
        cells = [row["trace_id"], row["deployment"], row["host"], lasted and f"{lasted:.1f}", *counts, labels]
        table.add_row(*(Text("" if cell is None else printable(cell)) for cell in cells))
    width = None if sys.stdout.isatty() else 10_000
    Console(width=width, highlight=False).print(table, soft_wrap=True)
