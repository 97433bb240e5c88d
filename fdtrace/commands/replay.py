"""Replay a trace under other budget formulas: side by side on a terminal, printed with --report, or as --json.

Rescheduled (the default): the model of the engine's scheduler schedules the recorded requests, arrivals and acceptance
lengths again. --scheduler: the same through the real code of a checkout. --as-recorded: each step keeps the state that
it had; what would the formula have allowed there?
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fdtrace.recorded_rows import RecordedRows
    from fdtrace.recorder.trace.recording import Recording
    from fdtrace.recorder.trace.standstill import Standstill
    from fdtrace.replayer.analysis.waiting import Waits
    from fdtrace.replayer.history.history import History
    from fdtrace.trace_reader import TraceReader
    from fdtrace.tui.terminal import Terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `fdtrace replay`."""
    from fdtrace.build_replays import add_replay_arguments
    from fdtrace.compute_replays import add_jobs_argument
    from fdtrace.rank_replays import add_rank_arguments

    add_replay_arguments(parser)
    add_jobs_argument(parser)
    add_rank_arguments(parser)
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--report", action="store_true", help="print instead (the default if stdout is no terminal)"
    )
    how.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.add_argument(
        "--waits",
        action="store_true",
        help="print also who waited, how long, for what and behind whom, in the recording and in each replay "
        "(with --report, or in --json)",
    )
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
    from fdtrace.compute_replays import compute_replays
    from fdtrace.rank_replays import asks_for_ranks
    from fdtrace.recorded_rows import RecordedRows
    from fdtrace.recorder.trace.standstill import standstill_of
    from fdtrace.recorder.trace.trace import open_trace

    drawing = args.svg is not None or args.html is not None
    terminal = all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    if drawing or not (args.report or args.json or args.waits or not terminal):
        return _show(args)
    if asks_for_ranks(args):
        return _report_ranks(args)
    with open_trace(args.trace) as trace:
        recording = trace.recording(args.engine)
        rows = RecordedRows(trace, recording.engine.engine_id)
        with Replays(recording, args, rows) as replays:
            histories = compute_replays(replays) if recording.num_steps else []
        still = standstill_of(trace, recording.engine.engine_id)
        waits = _waits(recording, histories, rows) if args.waits and histories else []
    if args.json:
        _print_json(recording, histories, still, waits)
    else:
        _print_report(recording, histories, still)
        _print_waits(args.trace, histories, waits)
    return 0


def _report_ranks(args: argparse.Namespace) -> int:
    """All ranks of the trace, printed or as JSON."""
    import json

    from rich.console import Console

    from fdtrace.library.trace_handle import open_library_trace
    from fdtrace.rank_replays import compute_ranks
    from fdtrace.replayer.rank_figures import ranks_dict
    from fdtrace.tui.report.rank_table import print_ranks

    with open_library_trace(args.trace) as trace:
        notes = list(trace.notes())
        recordings = [trace.recording(row["engine_id"]).value for row in trace.engines()]
    runs = compute_ranks(recordings, args)
    if args.json:
        print(json.dumps({"notes": notes, "runs": ranks_dict(runs)}))
    else:
        print_ranks(runs, Console())
    return 0


def _waits(recording: Recording, histories: Sequence[History], rows: RecordedRows) -> list[Waits | None]:
    """The waits of each history; None: it does not hold what each request ran."""
    from fdtrace.replayer.analysis.waiting import waits_of
    from fdtrace.replayer.history.recording_lives import with_recorded_lives

    return [waits_of(with_recorded_lives(history, recording, rows.batch_rows)) for history in histories]


def _print_waits(path: Path, histories: Sequence[History], waits: Sequence[Waits | None]) -> None:
    if not waits:
        return
    from rich.console import Console

    from fdtrace.recorder.printable import printable
    from fdtrace.tui.report.wait_table import print_waits

    console = Console()
    print_waits([history_waits for history_waits in waits if history_waits is not None], console)
    for history, history_waits in zip(histories, waits, strict=True):
        if history_waits is None:
            why = (
                f"its rows are too many to be taken into memory: fdtrace sql {path} 'FROM waiting'"
                if history.how == "recorded"
                else "it keeps the steps of the recording, so nobody waits for another time"
            )
            console.print(printable(f"{history.name}: no waits: {why}"), markup=False, soft_wrap=True)


def _show(args: argparse.Namespace) -> int:
    """The screen itself, or a picture of it."""
    from concurrent.futures import ThreadPoolExecutor

    from fdtrace.open_replay_screen import screen_of
    from fdtrace.recorder.errors import TraceError

    drawing = args.svg is not None or args.html is not None
    terminal = _terminal(args, drawing)
    with ThreadPoolExecutor(1) as pool:  # DuckDB reads a large trace while Python imports Textual
        reading = pool.submit(_read, args.trace, args.engine)
        from fdtrace.tui.app import run_app

        reader, recorded = reading.result()
    try:
        if not (reader.live or reader.first.num_steps):
            if drawing:
                raise TraceError(f"{args.trace} holds no step to draw", hint=f"fdtrace info {args.trace}")
            _print_report(reader.first, [], reader.standstill())
            return 0
        screen = screen_of(reader, args, recorded=recorded, terminal=terminal, step=args.step)
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


def _read(path: Path, engine: int | None) -> tuple[TraceReader, History | None]:
    """What reads the trace, and the recording as a history, with the columns that its pane shows; None: no steps."""
    from fdtrace.recorder.trace.columns_on_demand import stored_column
    from fdtrace.replayer.history.as_recorded import recorded_history
    from fdtrace.trace_reader import TraceReader

    reader = TraceReader(path, engine)
    try:
        if not reader.first.num_steps:
            return reader, None
        history = recorded_history(reader.first, reader.rows, counts_unfinished=False)
        for name in ("num_running", "num_waiting"):
            stored_column(history.columns, name)
    except BaseException:
        reader.close()
        raise
    return reader, history


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


def _print_json(
    recording: Recording,
    histories: list[History],
    still: Standstill | None,
    waits: Sequence[Waits | None],
) -> None:
    import json

    from fdtrace.tui.report.report import histories_json

    found = histories_json(recording, histories, still)
    if waits:
        from fdtrace.replayer.analysis.wait_figures import waits_dict

        for outcome, history_waits in zip(found["formulas"], waits, strict=True):
            outcome["waits"] = None if history_waits is None else waits_dict(history_waits)
    print(json.dumps(found))


def _print_report(recording: Recording, histories: list[History], still: Standstill | None) -> None:
    from rich.console import Console

    from fdtrace.tui.report.report import render_report

    render_report(recording, histories, Console(), still)
