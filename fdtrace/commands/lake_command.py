"""Look after a lake: remove old traces, merge small files.

fdtrace lake expire ducklake:traces --older 30d
fdtrace lake compact ducklake:traces
"""

from __future__ import annotations

import argparse
import re
from datetime import datetime, timedelta, timezone

from fdtrace.recorder.errors import UsageError

UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_AGE = re.compile(r"(\d{1,5})([mhdw])")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace lake`."""
    from fdtrace.trace_argument import lake_argument

    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    expire = actions.add_parser("expire", help="remove traces whose recording is older than so long")
    expire.add_argument("lake", type=lake_argument, metavar="LAKE")
    expire.add_argument("--older", type=age, required=True, metavar="AGE", help="such as 30d (also m, h, w)")
    expire.add_argument("--deployment", metavar="NAME", help="of this one alone")
    expire.add_argument(
        "--grace",
        type=age,
        default=timedelta(days=1),
        metavar="AGE",
        help="how long queries that run may still need what was removed; its files go with the first `expire` after "
        "that (default 1d)",
    )
    expire.add_argument("--dry-run", action="store_true", help="only list the traces")
    compact = actions.add_parser("compact", help="merge the small files of each deployment and day")
    compact.add_argument("lake", type=lake_argument, metavar="LAKE")


def run(args: argparse.Namespace) -> int:
    """Expire or compact. Prints the ids of the removed traces."""
    from fdtrace.progress import Progress
    from fdtrace.recorder.lake.expire_traces import compact_lake, expire_traces
    from fdtrace.recorder.printable import printable

    if args.action == "compact":
        Progress().note(f"{compact_lake(args.lake):,} files written of smaller ones")
        return 0
    before = datetime.now(timezone.utc) - args.older
    expired = expire_traces(
        args.lake, before, deployment=args.deployment, grace=args.grace, dry_run=args.dry_run
    )
    for trace_id in expired.trace_ids:
        print(printable(trace_id))
    would = "would be removed" if args.dry_run else "removed"
    files = "" if args.dry_run else f", {expired.num_files:,} files deleted"
    Progress().note(f"{len(expired.trace_ids):,} traces {would}{files}")
    return 0


def age(text: str) -> timedelta:
    """The time that a text as 30d means. UsageError if it means none."""
    found = _AGE.fullmatch(text)
    if found is None:
        raise UsageError(f"{text} is no age", hint="such as 90m, 12h, 30d, 8w")
    return timedelta(**{UNITS[found[2]]: int(found[1])})
