"""Replay a trace under other budget formulas: side by side on a terminal, printed with --report, or as --json.

Rescheduled (the default): the model of the engine's scheduler schedules the recorded requests, arrivals and acceptance
lengths again. --scheduler: the same through the real code of a checkout. --as-recorded: each step keeps the state that
it had; what would the formula have allowed there?
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fdtrace.recorder.trace.recording import Recording
    from fdtrace.recorder.trace.standstill import Standstill
    from fdtrace.replayer.history.history import History
    from fdtrace.tui.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace replay`."""
    from fdtrace.build_replays import add_replay_arguments

    add_replay_arguments(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--report", action="store_true", help="print instead (the default if stdout is no terminal)"
    )
    how.add_argument("--json", action="store_true", help="one JSON object, for machines")
    how.add_argument(
        "--svg", type=Path, metavar="PATH", help="write the screen as a picture, for a bug report"
    )
    how.add_argument("--html", type=Path, metavar="PATH", help="write the screen as a page")
    parser.add_argument(
        "--size", type=_size, default=(120, 36), metavar="CxR", help="of --svg and --html (default 120x36)"
    )
    parser.add_argument("--keys", metavar="KEYS", help="keys pressed before --svg and --html, as 'n n enter'")
    parser.add_argument(
        "--ascii",
        action="store_true",
        help="16 colours and 7-bit characters only (the default if the terminal has no block characters)",
    )
    parser.add_argument(
        "--theme", choices=("dark", "light"), help="of the screen (default: by COLORFGBG, else dark)"
    )
    parser.add_argument(
        "--step", type=int, metavar="N", help="where the cursor starts (default: the first exceeded)"
    )


def run(args: argparse.Namespace) -> int:
    """Open the screen, draw it, or print."""
    from fdtrace.build_replays import Replays
    from fdtrace.recorded_rows import RecordedRows
    from fdtrace.recorder.trace.standstill import standstill_of
    from fdtrace.recorder.trace.trace import open_trace

    drawing = args.svg is not None or args.html is not None
    terminal = all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    if drawing or not (args.report or args.json or not terminal):
        return _show(args)
    with open_trace(args.trace) as trace:
        recording = trace.recording(args.engine)
        with Replays(recording, args, RecordedRows(trace, recording.engine.engine_id)) as replays:
            histories = replays.compute_here() if recording.num_steps else []
        still = standstill_of(trace, recording.engine.engine_id)
    if args.json:
        _print_json(recording, histories, still)
    else:
        _print_report(recording, histories, still)
    return 0


def _show(args: argparse.Namespace) -> int:
    """The screen itself, or a picture of it."""
    from concurrent.futures import ThreadPoolExecutor

    from fdtrace.open_replay_screen import screen_of
    from fdtrace.recorder.errors import TraceError
    from fdtrace.trace_reader import TraceReader

    drawing = args.svg is not None or args.html is not None
    terminal = _terminal(args, drawing)
    with ThreadPoolExecutor(1) as pool:  # DuckDB reads a large trace while Python imports Textual
        reading = pool.submit(TraceReader, args.trace, args.engine)
        from fdtrace.tui.app import run_app

        reader = reading.result()
    try:
        if not (reader.live or reader.first.num_steps):
            if drawing:
                raise TraceError(f"{args.trace} holds no step to draw", hint=f"fdtrace info {args.trace}")
            _print_report(reader.first, [], reader.standstill())
            return 0
        screen = screen_of(reader, args, terminal=terminal, step=args.step)
        if drawing:
            from fdtrace.tui.export import write_screen

            screen.session.sources = replace(screen.session.sources, tail=None)
            keys = (args.keys or "").split()
            write_screen(screen, size=args.size, keys=keys, svg=args.svg, html=args.html)
        else:
            run_app(screen)
    finally:
        reader.close()
    return 0


def _terminal(args: argparse.Namespace, drawing: bool) -> Terminal:
    """The terminal by the options, else as it is detected. A picture does not depend on the terminal at hand."""
    from fdtrace.tui.terminal import Terminal

    detected = Terminal() if drawing else Terminal.here()
    return Terminal(args.ascii or detected.ascii, args.theme == "light" if args.theme else detected.light)


def _size(text: str) -> tuple[int, int]:
    columns, cross, rows = text.partition("x")
    if not (cross and columns.isdigit() and rows.isdigit() and int(columns) >= 40 and int(rows) >= 12):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: such as 100x30, at least 40x12")
    return int(columns), int(rows)


def _print_json(recording: Recording, histories: list[History], still: Standstill | None) -> None:
    import json

    from fdtrace.tui.report.report import histories_json

    print(json.dumps(histories_json(recording, histories, still)))


def _print_report(recording: Recording, histories: list[History], still: Standstill | None) -> None:
    from rich.console import Console

    from fdtrace.tui.report.report import render_report

    render_report(recording, histories, Console(), still)
