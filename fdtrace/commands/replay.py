"""Replay a trace under other budget formulas: side by side on a terminal, printed with --report, or as --json.

Rescheduled (the default): the recorded requests, arrivals and acceptance lengths scheduled afresh by the model of the
engine's scheduler. --scheduler: the same through the real code of a checkout. --as-recorded: each step keeps the state
that it had; what would the formula have allowed there?
"""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace replay`."""
    from fdtrace.replays import add_replay_arguments

    add_replay_arguments(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--report", action="store_true", help="print instead (the default where stdout is no terminal)"
    )
    how.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.add_argument("--ascii", action="store_true", help="16 colours and 7-bit characters only")
    parser.add_argument(
        "--step", type=int, metavar="N", help="where the cursor starts (default: the first exceeded)"
    )


def run(args: argparse.Namespace) -> int:
    """Open the screen, or print."""
    from fdtrace.replays import RecordedRows, Replays
    from recorder.trace import open_trace

    on_screen = not (args.report or args.json) and sys.stdout.isatty() and sys.stdin.isatty()
    with open_trace(args.trace) as trace:
        recording = trace.recording(args.engine)
        rows = RecordedRows(trace, recording.engine.engine_id)
        replays = Replays(recording, args, rows)
        if on_screen:
            from tui.app import run_replay

            run_replay(recording, replays.later(), rows=rows, ascii=args.ascii, step=args.step)
            return 0
        histories = replays.now()
    if args.json:
        _print_json(recording, histories)
    else:
        _print_report(recording, histories)
    return 0


def _print_json(recording: object, histories: object) -> None:
    import json

    from tui.report import histories_json

    print(json.dumps(histories_json(recording, histories)))  # type: ignore[arg-type]


def _print_report(recording: object, histories: object) -> None:
    from rich.console import Console

    from tui.report import render_report

    render_report(recording, histories, Console())  # type: ignore[arg-type]
