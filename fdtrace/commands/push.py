"""Put finished traces into a lake: whole or not at all, and each once, however often it is pushed.

    fdtrace push t.duckdb ducklake:traces --deployment chat --label commit=41677b9
    fdtrace push t.duckdb 'ducklake:postgres:dbname=fleet host=db?data=s3://bucket/path'

docs/fleet.md says what a lake is, where passwords come from, and what to ask it.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace push`."""
    from fdtrace.push_options import add_push_options
    from fdtrace.trace_argument import lake_argument

    parser.add_argument("traces", type=Path, nargs="+", metavar="TRACE", help="finished traces")
    parser.add_argument("push", type=lake_argument, metavar="LAKE", help="made if it is not there")
    add_push_options(parser)


def run(args: argparse.Namespace) -> int:
    """Push each of them."""
    from fdtrace.push_options import push_and_say

    push_and_say(args.traces, args)
    return 0
