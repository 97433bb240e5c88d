"""What a push says of its trace: the options of `push`, and of `attach` and `record` with `--push`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fdtrace.recorder.errors import FdtraceError, UsageError

if TYPE_CHECKING:
    from fdtrace.recorder.lake.push_trace import PushLabels

DEPLOYMENT = "default"


def add_push_options(parser: argparse.ArgumentParser) -> None:
    """Add --deployment and --label."""
    parser.add_argument(
        "--deployment",
        default=DEPLOYMENT,
        metavar="NAME",
        help=f"in a lake: the deployment that the trace is of (default: {DEPLOYMENT})",
    )
    parser.add_argument(
        "--label",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="in a lake: a label of the trace, such as commit=41677b9; repeatable",
    )


def add_push_after(parser: argparse.ArgumentParser) -> None:
    """Add --push, of a command that records, and the options that go with it."""
    from fdtrace.trace_argument import lake_argument

    parser.add_argument(
        "--push", type=lake_argument, metavar="LAKE", help="put the finished trace into a lake: docs/fleet.md"
    )
    add_push_options(parser)


def pushed_as(args: argparse.Namespace) -> PushLabels:
    """What the options say. UsageError if a label has no `=`, or a name makes no sense."""
    from fdtrace.recorder.lake.push_trace import PushLabels

    pairs = [text.partition("=") for text in args.label]
    for key, sign, _ in pairs:
        if not sign:
            raise UsageError(f"--label {key} has no value", hint="--label KEY=VALUE")
    return PushLabels(args.deployment, {key: value for key, _, value in pairs})


def check_push(args: argparse.Namespace) -> None:
    """Before a recording begins: raise what `push_recorded` would find wrong without the lake."""
    if args.push is not None:
        if args.flight is not None:
            raise UsageError(
                "--push is for one trace, and a flight keeps several",
                hint=f"fdtrace push {args.output}/*-*.duckdb LAKE",
            )
        from fdtrace.recorder.lake.lake_connection import check_extensions

        pushed_as(args)
        check_extensions(args.push)


def push_recorded(args: argparse.Namespace) -> None:
    """After a recording: push it where `--push` says.

    Raises:
        FdtraceError: it was not pushed; the trace stays where it is.
    """
    if args.push is None:
        return
    try:
        push_and_say([args.output], args)
    except FdtraceError as error:
        what = f"the trace is in {args.output}, but was not pushed: {error.what}"
        raise type(error)(what, why=error.why, hint=f"fdtrace push {args.output} '{args.push}'") from None


def push_and_say(paths: Sequence[Path], args: argparse.Namespace) -> None:
    """Push traces into the lake `args.push`, and say the id of each."""
    from fdtrace.progress import Progress
    from fdtrace.recorder.lake.push_trace import LakeWriter

    named, progress = pushed_as(args), Progress()
    with LakeWriter(args.push) as writer:
        for path in paths:
            pushed = writer.push(path, named)
            said = "is there already" if pushed.already else f"pushed, {pushed.num_rows:,} rows"
            progress.note(f"{pushed.trace_id}: {said}")
